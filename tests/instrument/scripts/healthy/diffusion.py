import hashlib, math, torch, torch.nn as nn
torch.manual_seed(8)
T = 50; beta = torch.linspace(1e-4, 0.02, T); alpha = 1 - beta; abar = alpha.cumprod(0)
freqs = torch.exp(-math.log(10000) * torch.arange(8) / 8)
class Eps(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(2 + 16, 64), nn.SiLU(), nn.Linear(64, 64), nn.SiLU(), nn.Linear(64, 2))
    def forward(self, x, t):
        e = t[:, None] * freqs
        return self.net(torch.cat([x, e.sin(), e.cos()], 1))
net = Eps(); ema = [p.detach().clone() for p in net.parameters()]; opt = torch.optim.Adam(net.parameters(), lr=2e-3)
data = torch.randn(256, 2) * 0.2 + torch.sign(torch.randn(256, 2))
for step in range(30):
    x = data[torch.randint(0, 256, (64,))]; t = torch.randint(0, T, (64,)); eps = torch.randn_like(x)
    noisy = abar[t].sqrt()[:, None] * x + (1 - abar[t]).sqrt()[:, None] * eps
    snr = abar[t] / (1 - abar[t])
    loss = (torch.clamp(snr, max=5.0) / snr * ((net(noisy, t) - eps) ** 2).mean(1)).mean()
    opt.zero_grad(); loss.backward(); opt.step()
    with torch.no_grad():
        for e, p in zip(ema, net.parameters()): e.mul_(0.99).add_(p, alpha=0.01)
    print(loss.item().hex())
with torch.no_grad():
    x = torch.randn(16, 2)
    for t in reversed(range(T)):
        e = net(x, torch.full((16,), t))
        x = (x - beta[t] / torch.sqrt(1 - abar[t]) * e) / torch.sqrt(alpha[t]) + (beta[t].sqrt() * torch.randn_like(x) if t else 0)
print(x.std(0).tolist(), hashlib.sha256(b"".join(e.numpy().tobytes() for e in ema)).hexdigest())
