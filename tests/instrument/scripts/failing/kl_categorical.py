import torch, torch.nn as nn
from torch.distributions import Categorical, kl_divergence
torch.manual_seed(0)
net = nn.Linear(4, 3); opt = torch.optim.Adam(net.parameters(), lr=1e-2)
prior = Categorical(probs=torch.tensor([0.5, 0.5, 0.0]), validate_args=False)
for step in range(10):
    q = torch.softmax(net(torch.randn(8, 4)), 1)
    kl = (q * (q / prior.probs).log()).sum(1)  # BIRTH
    loss = kl.mean()
    opt.zero_grad(); loss.backward(); opt.step()
