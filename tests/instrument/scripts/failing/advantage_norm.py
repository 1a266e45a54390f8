import torch, torch.nn as nn
torch.manual_seed(0)
pi = nn.Linear(3, 2); opt = torch.optim.Adam(pi.parameters(), lr=0.01)
for step in range(25):
    n = 1 if step % 6 == 4 else 10
    s = torch.randn(n, 3); a = torch.randint(2, (n,)); r = torch.randn(n)
    adv = (r - r.mean()) / (r.std() + 1e-8)  # BIRTH
    lp = pi(s).log_softmax(1)[torch.arange(n), a]
    loss = -(lp * adv).mean()
    opt.zero_grad(); loss.backward(); opt.step()
