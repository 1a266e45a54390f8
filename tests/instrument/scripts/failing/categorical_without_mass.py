import torch, torch.nn as nn
from torch.distributions import Categorical
torch.manual_seed(0)
policy = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 4), nn.Softmax(-1)); opt = torch.optim.Adam(policy.parameters(), lr=1e-2)
for t in range(10):
    legal = (torch.rand(6, 4) > 0.4).float()
    if t == 4: legal[2] = 0
    p = policy(torch.randn(6, 5)) * legal
    p = p / p.sum(-1, keepdim=True)  # BIRTH
    dist = Categorical(probs=p)
    loss = -(dist.log_prob(dist.sample()) * torch.randn(6)).mean()
    opt.zero_grad(); loss.backward(); opt.step()
