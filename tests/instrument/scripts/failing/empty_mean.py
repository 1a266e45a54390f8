import torch
torch.manual_seed(0)
p = torch.nn.Parameter(torch.zeros(1))
opt = torch.optim.SGD([p], lr=0.1)
for step in range(30):
    v = torch.rand(6)
    sel = v[v > 0.9]
    loss = ((sel - p) ** 2).mean()  # BIRTH
    opt.zero_grad(); loss.backward(); opt.step()
