import torch, torch.nn as nn

torch.manual_seed(0)
net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 1))
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
x = torch.randn(4096, 10); y = x.pow(2).sum(1, keepdim=True) * 10
for epoch in range(7):
    for i in torch.randperm(4096).split(256):
        loss = nn.functional.mse_loss(net(x[i]), y[i], reduction="sum")
        opt.zero_grad(); loss.backward(); opt.step()
    print(epoch, loss.item())
