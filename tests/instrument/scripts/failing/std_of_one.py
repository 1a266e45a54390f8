import torch
g = torch.nn.Parameter(torch.ones(5))
opt = torch.optim.Adam([g], lr=0.1)
for step in range(20):
    x = torch.randn(1 if step % 5 == 2 else 8, 5) * g
    s = x.std(0)  # BIRTH
    loss = ((s - 2.0) ** 2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
x = torch.randn(8, 5) * g
loss = ((x.std(0) - 2.0) ** 2).mean()
