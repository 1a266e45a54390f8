import torch, torch.nn as nn
torch.manual_seed(0)
net = nn.Linear(3, 2); opt = torch.optim.SGD(net.parameters(), lr=0.1)
data = torch.randn(33, 3)
for epoch in range(2):
    for chunk in data.split(8):
        h = net(chunk)
        h = (h - h.mean(0)) / torch.sqrt(h.var(0) + 1e-5)  # BIRTH
        loss = (h[:, 0] - chunk[:, 0]).pow(2).mean()
        opt.zero_grad(); loss.backward(); opt.step()
loss = net(data).pow(2).mean()
