import torch, torch.nn as nn
torch.manual_seed(0)
enc = nn.Linear(5, 4); dec = nn.Linear(2, 5)
opt = torch.optim.Adam([*enc.parameters(), *dec.parameters()], lr=1e-2)
for step in range(40):
    x = torch.randn(16, 5)
    if step == 10:
        x[3] *= 2000
    mu, logvar = enc(x).chunk(2, -1)
    z = mu + torch.exp(0.5 * logvar) * torch.randn_like(mu)  # BIRTH
    loss = ((dec(z) - x) ** 2).mean() - 0.5 * (1 + logvar - mu ** 2 - logvar.exp()).mean()
    opt.zero_grad(); loss.backward(); opt.step()
