import torch, torch.nn as nn
torch.manual_seed(0)
pi = nn.Linear(4, 2); opt = torch.optim.Adam(pi.parameters(), lr=1e-2)
for step in range(20):
    s = torch.randn(16, 4) * 10
    u = pi(s) * 5; a = torch.tanh(u)
    logp = -0.5 * u ** 2 - torch.log(1 - a ** 2)  # BIRTH
    loss = logp.mean()
    opt.zero_grad(); loss.backward(); opt.step()
