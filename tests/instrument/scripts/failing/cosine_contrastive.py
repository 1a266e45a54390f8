import torch, torch.nn as nn
torch.manual_seed(0)
f = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4, bias=False)); opt = torch.optim.Adam(f.parameters(), lr=0.01)
for step in range(30):
    x = torch.randn(8, 6)
    if step % 7 == 3:
        x[2] = 0
        with torch.no_grad(): f[0].bias.zero_()
    z = f(x)
    z = z / z.pow(2).sum(1, keepdim=True).sqrt()  # BIRTH
    logits = z @ z.t() / 0.1
    loss = nn.functional.cross_entropy(logits, torch.arange(8))
    opt.zero_grad(); loss.backward(); opt.step()
x = torch.randn(8, 6); z = f(x); loss = z.pow(2).mean()
