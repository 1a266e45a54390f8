import torch, torch.nn as nn
torch.manual_seed(0)
net = nn.Linear(10, 1)
opt = torch.optim.SGD(net.parameters(), lr=5.0)
x = torch.randn(64, 10); y = x.sum(1, keepdim=True)
for step in range(300):
    loss = ((net(x) - y) ** 2).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()  # BIRTH
