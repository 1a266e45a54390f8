import torch
a = torch.nn.Parameter(torch.tensor([0.5, -0.5, 0.0, 2.0]))
opt = torch.optim.Adam([a], lr=0.05)
for step in range(30):
    safe = torch.where(a > 0, a.log(), a)  # BIRTH
    loss = (safe - 0.1).pow(2).sum()
    opt.zero_grad(); loss.backward(); opt.step()
