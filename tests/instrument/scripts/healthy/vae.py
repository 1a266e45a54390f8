import hashlib, torch, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(4)
class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.enc = nn.Linear(50, 32); self.mu = nn.Linear(32, 8); self.logvar = nn.Linear(32, 8); self.dec = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 50))
    def forward(self, x):
        h = torch.tanh(self.enc(x)); mu, logvar = self.mu(h), self.logvar(h)
        std = torch.exp(0.5 * logvar)
        z = mu + std * torch.randn_like(std)
        return torch.sigmoid(self.dec(z)), mu, logvar
net = VAE(); opt = torch.optim.Adam(net.parameters(), 1e-3); x = torch.bernoulli(torch.full((64, 50), 0.3))
for step in range(30):
    rec, mu, logvar = net(x)
    bce = F.binary_cross_entropy(rec, x, reduction="sum")
    kld = -0.5 * torch.sum(1 + logvar - mu.pow(2) - logvar.exp())
    loss = (bce + kld) / len(x)
    opt.zero_grad(); loss.backward(); opt.step()
    print(loss.item().hex(), kld.item().hex())
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest())
