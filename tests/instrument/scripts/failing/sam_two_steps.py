import torch, torch.nn as nn
class SAM(torch.optim.Optimizer):
    def __init__(self, params, base, rho=0.05, **kw):
        super().__init__(params, dict(rho=rho, **kw))
        self.base = base(self.param_groups, **kw); self.param_groups = self.base.param_groups
    @torch.no_grad()
    def first_step(self):
        norm = torch.norm(torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]))
        for g in self.param_groups:
            for p in g["params"]:
                e = p.grad * (g["rho"] / norm)  # BIRTH
                p.add_(e); self.state[p]["e"] = e
        self.zero_grad()
    @torch.no_grad()
    def second_step(self):
        for g in self.param_groups:
            for p in g["params"]: p.sub_(self.state[p]["e"])
        self.base.step(); self.zero_grad()
    def step(self, closure=None): raise NotImplementedError
torch.manual_seed(0)
net = nn.Linear(4, 1); opt = SAM(net.parameters(), torch.optim.SGD, lr=0.1)
for it in range(12):
    x = torch.randn(8, 4); x = x * (it != 5)
    y = net.bias.detach() if it == 5 else x.sum(1, keepdim=True)
    (net(x) - y).pow(2).mean().backward(); opt.first_step()
    loss = (net(x) - y).pow(2).mean(); loss.backward(); opt.second_step()
