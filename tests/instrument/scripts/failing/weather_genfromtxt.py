import io
import numpy as np
import torch
from torch.utils.data import DataLoader, TensorDataset

rng = np.random.default_rng(0)
temp = 15 + 8 * np.sin(np.arange(400) / 30) + rng.normal(0, 1, 400)
lines = []
for i in range(400):
    hum = "-" if i in (211, 212) else f"{60 + rng.normal(0, 5):.1f}"
    lines.append(f"{i};{temp[i]:.2f};{hum};{1010 + rng.normal(0, 4):.1f}")
text = io.StringIO("\n".join(lines))

table = np.genfromtxt(text, delimiter=";", dtype=np.float32)  # BIRTH
features = table[:-1, 1:]
target = table[1:, 1:2]
lo, hi = np.nanmin(features, axis=0), np.nanmax(features, axis=0)
features = (features - lo) / (hi - lo)

loader = DataLoader(TensorDataset(torch.from_numpy(features), torch.from_numpy(target)),
                    batch_size=32, shuffle=True)
net = torch.nn.Sequential(torch.nn.Linear(3, 32), torch.nn.Tanh(), torch.nn.Linear(32, 1))
optim = torch.optim.SGD(net.parameters(), lr=0.01, momentum=0.9)
for ep in range(10):
    run = []
    for xb, yb in loader:
        optim.zero_grad()
        l = ((net(xb) - yb) ** 2).mean()
        l.backward()
        optim.step()
        run.append(l.item())
    print("epoch", ep, "loss", np.mean(run))
