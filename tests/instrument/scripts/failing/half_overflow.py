import torch, torch.nn as nn
torch.manual_seed(0)
w = nn.Parameter((torch.randn(16, 16) * 0.1).half())
opt = torch.optim.SGD([w], lr=1e-3)
for step in range(20):
    x = torch.randn(8, 16).half() * 300
    h = x @ w
    sq = h ** 2  # BIRTH
    loss = sq.float().mean() * 1e-6
    opt.zero_grad(); loss.backward(); opt.step()
