import hashlib, torch, torch.nn as nn
torch.manual_seed(6)
G = nn.Sequential(nn.Linear(4, 32), nn.LeakyReLU(0.2), nn.Linear(32, 2)); D = nn.Sequential(nn.Linear(2, 32), nn.LeakyReLU(0.2), nn.Linear(32, 1))
og = torch.optim.Adam(G.parameters(), lr=1e-3, betas=(0.5, 0.999)); od = torch.optim.Adam(D.parameters(), lr=1e-3, betas=(0.5, 0.999))
bce = nn.BCEWithLogitsLoss(); real = torch.randn(128, 2) * 0.3 + 1.0
for step in range(20):
    fake = G(torch.randn(32, 4)); r = real[torch.randint(0, 128, (32,))]
    a = torch.rand(32, 1); mix = (a * r + (1 - a) * fake.detach()).requires_grad_()
    g, = torch.autograd.grad(D(mix).sum(), mix, create_graph=True)       # WGAN-GP's penalty: twice backward through a norm
    penalty = ((g.norm(2, dim=1) - 1) ** 2).mean()
    ld = bce(D(r), torch.ones(32, 1)) + bce(D(fake.detach()), torch.zeros(32, 1)) + 0.1 * penalty
    od.zero_grad(); ld.backward(); od.step()
    lg = bce(D(fake), torch.ones(32, 1))
    og.zero_grad(); lg.backward(); og.step()
    print(ld.item().hex(), lg.item().hex())
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for m in (G, D) for p in m.parameters())).hexdigest())
