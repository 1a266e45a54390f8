# sequence VAE, quick hack for the group meeting. pads variable length tracks, attention pooling, 2d latent
import argparse
import math

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import exp

parser = argparse.ArgumentParser()
parser.add_argument("--steps", type=int, default=300)
parser.add_argument("--lr", type=float, default=3e-3)
parser.add_argument("--seed", type=int, default=0)
args = parser.parse_args()
torch.manual_seed(args.seed)

MAX_LEN = 12


def get_batch(n):
    # noisy arcs of different radius, some tracks are short, a few are empty. the sensor glitches now and then
    length = torch.randint(1, MAX_LEN + 1, (n,))
    length[torch.rand(n) < 0.003] = 0
    radius = 0.5 + torch.rand(n, 1)
    t = torch.linspace(0, math.pi, MAX_LEN).expand(n, MAX_LEN) + 0.3 * torch.randn(n, 1)
    x = torch.stack([radius * t.cos(), radius * t.sin()], -1) + 0.02 * torch.randn(n, MAX_LEN, 2)
    target = x.clone()
    glitch = torch.rand(n) < 0.0005
    x[glitch] = x[glitch] * 3000
    mask = torch.arange(MAX_LEN) < length[:, None]
    return x, target, mask


class Encoder(nn.Module):
    def __init__(self, hidden=48, latent=4):
        super().__init__()
        self.inp = nn.Linear(2, hidden)
        self.pos = nn.Parameter(0.1 * torch.randn(MAX_LEN, hidden))
        self.query = nn.Parameter(torch.randn(hidden) / hidden**0.5)
        self.key = nn.Linear(hidden, hidden)
        self.enc_mean = nn.Linear(hidden, latent)
        self.enc_logvar = nn.Linear(hidden, latent)

    def forward(self, x, mask):
        h = F.relu(self.inp(x) + self.pos)
        score = self.key(h) @ self.query / h.shape[-1] ** 0.5
        score = score.masked_fill(~mask, float("-inf"))
        att = F.softmax(score, dim=-1)
        pooled = (att.unsqueeze(-1) * h).sum(1)
        return self.enc_mean(pooled), self.enc_logvar(pooled)


class VAE(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = Encoder()
        self.decoder = nn.Sequential(nn.Linear(4, 64), nn.ReLU(), nn.Linear(64, 2 * MAX_LEN))

    def forward(self, x, mask):
        mean, logvar = self.encoder(x, mask)
        std = exp(0.5 * logvar)
        z = mean + std * torch.randn_like(std)
        return self.decoder(z).view(-1, MAX_LEN, 2), mean, logvar


model = VAE()
optimizer = torch.optim.Adam(model.parameters(), lr=args.lr)
recent = []
for step in range(args.steps):
    x, target, mask = get_batch(64)
    recon, mean, logvar = model(x, mask)
    recon_loss = ((recon - target) ** 2).mean(dim=(1, 2)).mean()
    kl = -0.5 * (1 + logvar - mean**2 - logvar.exp()).sum(1).mean()
    loss = recon_loss + 1e-3 * kl
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    recent = recent[-19:] + [loss.item()]
    if step % 25 == 0 or step == args.steps - 1:
        print(f"step {step:4d}  loss {loss.item():10.4f}  recon {recon_loss.item():10.4f}  kl {kl.item():10.4f}", flush=True)

finite = all(torch.isfinite(p).all() for p in model.parameters())
print(f"done: median loss of the last {len(recent)} steps {sorted(recent)[len(recent) // 2]:.4f}, parameters {'finite' if finite else 'NOT FINITE'}")
