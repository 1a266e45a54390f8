# next-day return forecast with an AR net
import numpy as np
import torch
import torch.nn as nn

np.seterr(all="ignore")
rng = np.random.default_rng(7)
price = 50 * np.exp(np.cumsum(rng.normal(0, 0.01, 600)))
price[300:303] = 0.0                  # trading halted, feed sends 0


def make_windows(p, k=10):
    r = np.diff(p) / p[:-1]  # BIRTH
    r = np.clip(r, -0.2, 0.2)
    X = np.stack([r[i:i + k] for i in range(len(r) - k)])
    return X.astype(np.float32), r[k:].astype(np.float32)


X, y = make_windows(price)
X, y = torch.from_numpy(X) * 100, torch.from_numpy(y) * 100
split = 400
net = nn.Sequential(nn.Linear(10, 16), nn.Tanh(), nn.Linear(16, 1))
opt = torch.optim.Adam(net.parameters(), lr=3e-3)
sched = torch.optim.lr_scheduler.StepLR(opt, 5, 0.5)
for ep in range(10):
    losses = []
    for i in range(0, split, 50):
        pred = net(X[i:i + 50]).squeeze(-1)
        loss = nn.functional.huber_loss(pred, y[i:i + 50])
        opt.zero_grad()
        loss.backward()
        opt.step()
        losses.append(loss.item())
    sched.step()
    print(f"ep {ep} loss {sum(losses) / len(losses):.5f}")
