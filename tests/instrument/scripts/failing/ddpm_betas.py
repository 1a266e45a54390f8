import torch, torch.nn as nn
torch.manual_seed(0)
T = 50
betas = torch.linspace(1e-4, 1.0, T); abar = torch.cumprod(1 - betas, 0)
net = nn.Sequential(nn.Linear(3, 16), nn.SiLU(), nn.Linear(16, 2)); opt = torch.optim.AdamW(net.parameters(), 1e-3)
for it in range(25):
    x0 = torch.randn(16, 2); t = torch.randint(0, T, (16,)); t[0] = T - 1
    a = abar[t][:, None]; eps = torch.randn_like(x0)
    xt = a.sqrt() * x0 + (1 - a).sqrt() * eps
    pred = net(torch.cat([xt, t[:, None] / T], 1))
    snr = a / (1 - a)
    w = 1.0 / snr  # BIRTH
    loss = (w * (pred - eps) ** 2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
