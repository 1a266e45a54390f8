import torch, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
opt = torch.optim.Adam(net.parameters(), lr=0.01)
x = torch.randn(32, 4) * 60; y = torch.randint(3, (32,))
for step in range(40):
    p = F.softmax(net(x * 40), dim=1)
    logp = torch.log(p)  # BIRTH
    loss = -logp[torch.arange(32), y].mean()
    opt.zero_grad(); loss.backward(); opt.step()
