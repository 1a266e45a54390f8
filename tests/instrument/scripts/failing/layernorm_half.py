import torch, torch.nn as nn
torch.manual_seed(0)
lin = nn.Linear(16, 16).half(); opt = torch.optim.SGD(lin.parameters(), lr=1e-3)
def norm(h):
    c = h - h.mean(-1, keepdim=True)
    var = (c * c).mean(-1, keepdim=True)
    return c / torch.sqrt(var + 1e-8)  # BIRTH
for step in range(10):
    x = torch.randn(4, 16).half(); x[2] = 0
    h = norm(lin(x) * (x.abs().sum(1, keepdim=True) > 0))
    loss = h.float().pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
