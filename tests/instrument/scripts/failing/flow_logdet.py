import torch, torch.nn as nn
torch.manual_seed(0)
class Coupling(nn.Module):
    def __init__(self):
        super().__init__(); self.net = nn.Linear(1, 2)
    def forward(self, x):
        a, b = x[:, :1], x[:, 1:]
        s, t = self.net(a).chunk(2, 1)
        y = b * torch.exp(s) + t  # BIRTH
        return torch.cat([y, a], 1), s.sum(1)
layers = nn.ModuleList(Coupling() for _ in range(6))
opt = torch.optim.SGD(layers.parameters(), lr=0.5)
for step in range(40):
    z = torch.randn(64, 2) * 8; ld = 0
    for f in layers:
        z, d = f(z); ld = ld + d
    loss = (0.5 * z.pow(2).sum(1) - ld).mean()
    opt.zero_grad(); loss.backward(); opt.step()
