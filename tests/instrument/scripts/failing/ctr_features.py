# click-through-rate model, features made from the raw log
import numpy as np
import torch
import torch.nn.functional as F

rng = np.random.default_rng(11)
n_ads = 300
impressions = rng.poisson(4.0, n_ads)
clicks = rng.binomial(impressions, 0.2)
hour = rng.integers(0, 24, n_ads)

with np.errstate(all="ignore"):
    ctr = clicks / impressions  # BIRTH
log_imp = np.log1p(impressions)
feats = np.column_stack([ctr, log_imp, np.sin(hour / 24 * 2 * np.pi), np.cos(hour / 24 * 2 * np.pi)])
label = (rng.random(n_ads) < 0.2).astype("float32")

X = torch.tensor(feats, dtype=torch.float32)
y = torch.tensor(label)
w = torch.zeros(4, requires_grad=True)
b = torch.zeros(1, requires_grad=True)
opt = torch.optim.SGD([w, b], lr=0.1)
for it in range(50):
    idx = torch.randint(0, n_ads, (64,))
    loss = F.binary_cross_entropy_with_logits(X[idx] @ w + b, y[idx])
    opt.zero_grad()
    loss.backward()
    opt.step()
    if it % 10 == 0:
        print(it, loss.item())
print("final loss", loss.item())
