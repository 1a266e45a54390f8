import torch, torch.nn as nn
torch.manual_seed(0)
w = nn.Parameter(torch.eye(3)); opt = torch.optim.SGD([w], lr=0.1)
for step in range(10):
    c = w @ w.t()
    vals, vecs = torch.linalg.eigh(c)  # BIRTH
    loss = (vecs[:, 0] - 1).pow(2).sum() + vals.sum()
    opt.zero_grad(); loss.backward(); opt.step()
