import torch, torch.nn as nn
from torch.distributions import Normal
torch.manual_seed(0)
ls = nn.Parameter(torch.tensor([-120.0, 0.0])); mu = nn.Parameter(torch.zeros(2))
opt = torch.optim.SGD([ls, mu], lr=0.01)
for step in range(15):
    d = Normal(mu, ls.exp())  # BIRTH
    loss = -d.entropy().mean() + (mu ** 2).sum()
    opt.zero_grad(); loss.backward(); opt.step()
