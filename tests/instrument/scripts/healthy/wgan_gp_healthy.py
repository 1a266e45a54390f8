import torch, torch.nn as nn
torch.manual_seed(0)
C = nn.Sequential(nn.Linear(2, 16), nn.LeakyReLU(0.2), nn.Linear(16, 1)); G = nn.Linear(2, 2)
oc = torch.optim.Adam(C.parameters(), 1e-3, betas=(0.0, 0.9)); og = torch.optim.RMSprop(G.parameters(), 1e-3)
for it in range(15):
    real = torch.randn(8, 2); fake = G(torch.randn(8, 2))
    e = torch.rand(8, 1); mid = (e * real + (1 - e) * fake.detach()).requires_grad_()
    g, = torch.autograd.grad(C(mid).sum(), mid, create_graph=True)
    lc = C(fake.detach()).mean() - C(real).mean() + 10 * ((g.norm(2, dim=1) - 1) ** 2).mean()
    oc.zero_grad(); lc.backward(); oc.step()
    loss = -C(fake).mean(); og.zero_grad(); loss.backward(); og.step()
    print(lc.item().hex(), loss.item().hex())
