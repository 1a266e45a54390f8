import torch, torch.nn as nn
from torch.distributions import Beta
torch.manual_seed(0)
ab = nn.Parameter(torch.ones(2)); opt = torch.optim.Adam([ab], lr=0.05)
x = torch.rand(64); x[5] = 1.0
for step in range(10):
    d = Beta(ab[0].exp() + 1, ab[1].exp(), validate_args=False)
    ll = ab[0].exp() * torch.log(x) + (ab[1].exp() - 1) * torch.log(1 - x)  # BIRTH
    loss = -ll.mean()
    opt.zero_grad(); loss.backward(); opt.step()
