import torch, torch.nn as nn
torch.manual_seed(0)
pi = nn.Linear(4, 2); opt = torch.optim.Adam(pi.parameters(), lr=3e-2)
old = torch.full((64,), -120.0)
for step in range(30):
    s = torch.randn(64, 4); a = torch.randint(2, (64,)); adv = torch.randn(64)
    logp = pi(s).log_softmax(-1)[torch.arange(64), a]
    ratio = torch.exp(logp - old)  # BIRTH
    loss = -(ratio * adv).mean()
    opt.zero_grad(); loss.backward(); opt.step()
