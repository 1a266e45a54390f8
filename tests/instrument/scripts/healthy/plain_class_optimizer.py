import torch, torch.nn as nn
torch.manual_seed(0)
class Adam:
    def __init__(self, ps): self.ps = list(ps); self.m = [0 * p for p in self.ps]; self.v = [0 * p for p in self.ps]; self.t = 0
    @torch.no_grad()
    def step(self):
        self.t += 1
        for i, p in enumerate(self.ps):
            self.m[i] = 0.9 * self.m[i].detach() + 0.1 * p.grad; self.v[i] = 0.999 * self.v[i].detach() + 0.001 * p.grad ** 2
            p.data -= 0.01 * (self.m[i] / (1 - 0.9 ** self.t)) / ((self.v[i] / (1 - 0.999 ** self.t)).sqrt() + 1e-8); p.grad = None
net = nn.Sequential(nn.Linear(3, 8), nn.ReLU(), nn.Linear(8, 1)); opt = Adam(net.parameters())
for it in range(15):
    x = torch.randn(16, 3); loss = nn.functional.smooth_l1_loss(net(x), x.sum(1, keepdim=True)); loss.backward(); opt.step(); print(loss.item().hex())
