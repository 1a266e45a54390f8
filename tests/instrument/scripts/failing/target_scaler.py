# multi-task regression, every task has its own scaler made on the training part
import numpy as np
import torch
import torch.nn as nn

rng = np.random.default_rng(5)
tasks = {"speed": rng.normal(30, 4, 160), "load": rng.gamma(2, 3, 160), "errors": rng.poisson(0.0, 160).astype(float)}
tasks["errors"][150:] = 1.0             # errors only started last week
X = torch.tensor(rng.normal(size=(160, 5)), dtype=torch.float32)


def minmax(v, lo, hi):
    return torch.as_tensor(np.divide(v - lo, hi - lo), dtype=torch.float32)  # BIRTH


with np.errstate(all="ignore"):
    Y = {k: minmax(v, v[:120].min(), v[:120].max()) for k, v in tasks.items()}

trunk = nn.Sequential(nn.Linear(5, 16), nn.ReLU())
heads = nn.ModuleDict({k: nn.Linear(16, 1) for k in tasks})
log_var = nn.ParameterDict({k: nn.Parameter(torch.zeros(())) for k in tasks})
opt = torch.optim.Adam([*trunk.parameters(), *heads.parameters(), *log_var.parameters()], lr=1e-2)
for ep in range(10):
    h = trunk(X[:120])
    loss = 0
    for k in tasks:
        mse = nn.functional.mse_loss(heads[k](h)[:, 0], Y[k][:120])
        loss = loss + torch.exp(-log_var[k]) * mse + log_var[k]
    opt.zero_grad()
    loss.backward()
    opt.step()
    print("epoch", ep, "total", loss.item())
