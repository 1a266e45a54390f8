import torch
from torch.nn import Parameter
w = Parameter(torch.zeros(4))
b = Parameter(torch.ones(1))
opt = torch.optim.SGD([w, b], lr=0.1)
x = torch.randn(8, 4, generator=torch.Generator().manual_seed(0))
for step in range(20):
    unit = w / w.norm()  # BIRTH
    loss = ((x @ unit + b - 0.3) ** 2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
