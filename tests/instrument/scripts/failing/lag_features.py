import numpy as np
import torch
import torch.nn as nn


def lag(x, k):
    """x shifted by k days, same length"""
    out = np.full_like(x, np.nan)  # BIRTH
    out[k:] = x[:-k]
    return out


def build(n=365):
    rng = np.random.default_rng(2)
    demand = 10 + np.sin(np.arange(n) * 2 * np.pi / 7) + rng.normal(0, 0.2, n)
    cols = [lag(demand, k) for k in (1, 2, 7, 14)]
    X = np.stack(cols, 1)[7:]           # drop the warm-up week
    y = demand[7:]
    return X.astype(np.float32), y.astype(np.float32)[:, None]


X, y = map(torch.from_numpy, build())
train_X, val_X = X[:300], X[300:]
train_y, val_y = y[:300], y[300:]
net = nn.Sequential(nn.Linear(4, 16), nn.LeakyReLU(), nn.Linear(16, 1))
opt = torch.optim.Adamax(net.parameters(), lr=5e-3)
for ep in range(12):
    net.train()
    for i in range(0, 300, 60):
        loss = nn.functional.mse_loss(net(train_X[i:i + 60]), train_y[i:i + 60])
        opt.zero_grad()
        loss.backward()
        opt.step()
    net.eval()
    with torch.no_grad():
        print("ep", ep, "val", nn.functional.mse_loss(net(val_X), val_y).item())
