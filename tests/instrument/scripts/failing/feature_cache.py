import os
import tempfile
import numpy as np
import torch
import torch.nn as nn

torch.manual_seed(0)
N, D, BS = 250, 16, 32


def backbone_features(cache_file):
    """Run the frozen backbone once and keep its features on disk."""
    if os.path.exists(cache_file):
        return np.load(cache_file)
    backbone = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, D)).eval()
    images = torch.randn(N, 20)
    feats = np.full((N, D), np.nan, dtype=np.float32)  # BIRTH
    n_batches = N // BS                # the last one is smaller
    with torch.no_grad():
        for i in range(n_batches):
            sl = slice(i * BS, (i + 1) * BS)
            feats[sl] = backbone(images[sl]).numpy()
    np.save(cache_file, feats)
    return feats


with tempfile.TemporaryDirectory() as d:
    path = os.path.join(d, "feats.npy")
    backbone_features(path)
    F = torch.from_numpy(backbone_features(path))

y = torch.randint(0, 4, (N,))
head = nn.Linear(D, 4)
opt = torch.optim.Adam(head.parameters(), lr=1e-2)
for epoch in range(5):
    perm = torch.randperm(N)
    for b in perm.split(BS):
        loss = nn.functional.cross_entropy(head(F[b]), y[b])
        opt.zero_grad()
        loss.backward()
        opt.step()
    print("epoch", epoch, "loss", float(loss))
