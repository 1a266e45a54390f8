import torch, torch.nn as nn
from torch.utils.checkpoint import checkpoint
torch.manual_seed(0)
l1 = nn.Linear(3, 3, bias=False); opt = torch.optim.SGD(l1.parameters(), lr=0.1)
def block(x):
    h = l1(x) ** 2
    return h.sum(1).sqrt()  # BIRTH
for step in range(15):
    x = torch.randn(16, 3); x[0] = 0
    loss = (checkpoint(block, x, use_reentrant=False) - 1).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
