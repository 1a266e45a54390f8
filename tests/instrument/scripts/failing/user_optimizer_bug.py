import torch, torch.nn as nn
class Adagrad(torch.optim.Optimizer):
    def __init__(self, params, lr): super().__init__(params, dict(lr=lr))
    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                s = self.state.setdefault(p, {})
                s["sum"] = s.get("sum", torch.zeros_like(p)) + p.grad ** 2
                p -= group["lr"] * p.grad / s["sum"].sqrt()  # BIRTH
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1)); opt = Adagrad(net.parameters(), 0.1)
for it in range(20):
    x = torch.randn(16, 4).abs() * torch.tensor([1.0, 1.0, 1.0, 0.0])
    loss = net(x).pow(2).mean()
    opt.zero_grad(); loss.backward()
    opt.step()
