import torch, torch.nn as nn
torch.manual_seed(0)
net = nn.Linear(4, 1)
opt = torch.optim.Adam(net.parameters(), lr=0.1)
x = torch.randn(32, 4) * 50; y = (x[:, :1] > 0).float()
for step in range(40):
    p = torch.sigmoid(net(x) * 10)
    loss = -(y * torch.log(p) + (1 - y) * torch.log(1 - p)).mean()  # BIRTH
    opt.zero_grad(); loss.backward(); opt.step()
