import torch, torch.nn as nn
torch.manual_seed(0)
W = nn.Parameter(torch.eye(8) * 3.0); U = nn.Linear(2, 8); o = nn.Linear(8, 1)
opt = torch.optim.SGD([W, *U.parameters(), *o.parameters()], lr=1e-2)
for step in range(15):
    x = torch.randn(100, 4, 2); h = torch.zeros(4, 8)
    for t in range(100):
        h = h @ W + U(x[t])  # BIRTH
    loss = (o(h) - 1).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
