import torch, torch.nn as nn
torch.manual_seed(0)
G = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 2)); D = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1), nn.Sigmoid())
og = torch.optim.Adam(G.parameters(), 1e-2); od = torch.optim.Adam(D.parameters(), 1e-2)
for step in range(60):
    real = torch.randn(32, 2) * 0.1 + 40.0 * (step > 20); fake = G(torch.randn(32, 2))
    loss_d = -(D(real).log() + (1 - D(fake.detach() - 60.0 * (step > 20))).log()).mean()  # BIRTH
    od.zero_grad(); loss_d.backward(); od.step()
    p = D(fake - 4000.0 * (step > 20))
    loss = -p.log().mean()
    og.zero_grad(); loss.backward(); og.step()
