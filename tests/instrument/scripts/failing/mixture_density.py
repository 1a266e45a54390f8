import torch, torch.nn as nn, math
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(1, 16), nn.Tanh(), nn.Linear(16, 6)); opt = torch.optim.Adam(net.parameters(), lr=0.05)
x = torch.rand(64, 1); y = torch.sin(6 * x)
y[5] = 80.0
for step in range(60):
    mu, ls = net(x).chunk(2, 1)
    sigma = torch.exp(ls)
    prob = torch.exp(-0.5 * ((y - mu) / sigma) ** 2) / (sigma * math.sqrt(2 * math.pi))
    loss = -torch.log(prob.mean(1)).mean()  # BIRTH
    opt.zero_grad(); loss.backward(); opt.step()
