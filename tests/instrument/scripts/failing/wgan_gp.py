import torch, torch.nn as nn
torch.manual_seed(0)
critic = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1)); gen = nn.Linear(2, 2)
oc = torch.optim.Adam(critic.parameters(), 1e-3); og = torch.optim.Adam(gen.parameters(), 1e-3)
def penalty(real, fake):
    e = torch.rand(real.size(0), 1)
    mid = (e * real + (1 - e) * fake).requires_grad_()
    g, = torch.autograd.grad(critic(mid).sum(), mid, create_graph=True)
    return ((g.pow(2).sum(1).sqrt() - 1) ** 2).mean()  # BIRTH
with torch.no_grad(): critic[0].bias.fill_(-30.0)
for it in range(12):
    real = torch.randn(8, 2); fake = gen(torch.randn(8, 2))
    lc = critic(fake.detach()).mean() - critic(real).mean() + 10 * penalty(real, fake.detach())
    oc.zero_grad(); lc.backward(); oc.step()
    loss = -critic(fake).mean()
    og.zero_grad(); loss.backward(); og.step()
