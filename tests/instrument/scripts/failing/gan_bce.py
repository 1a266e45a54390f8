import torch, torch.nn as nn
torch.manual_seed(0)
G = nn.Linear(2, 2); D = nn.Linear(2, 1)
og = torch.optim.SGD(G.parameters(), lr=0.5); od = torch.optim.SGD(D.parameters(), lr=50.0)
for step in range(40):
    real = torch.randn(16, 2) * 30 + 100; fake = G(torch.randn(16, 2))
    dr, df = torch.sigmoid(D(real)), torch.sigmoid(D(fake.detach()))
    d_loss = -(torch.log(dr) + torch.log(1 - df)).mean()  # BIRTH
    od.zero_grad(); d_loss.backward(); od.step()
    g_loss = -torch.log(torch.sigmoid(D(fake))).mean()
    og.zero_grad(); g_loss.backward(); og.step()
    loss = g_loss
