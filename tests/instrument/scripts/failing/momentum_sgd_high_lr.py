import torch, torch.nn as nn
torch.manual_seed(0)
net = nn.Sequential(nn.Linear(5, 32), nn.ReLU(), nn.Linear(32, 1)); opt = torch.optim.SGD(net.parameters(), lr=3.0, momentum=0.9)
x = torch.randn(64, 5); y = x.pow(2).sum(1, keepdim=True)
for step in range(100):
    loss = ((net(x) - y) ** 2).mean()  # BIRTH
    opt.zero_grad(); loss.backward()
    opt.step()
