import torch, torch.nn as nn
torch.manual_seed(0)
net = nn.Linear(5, 1); opt = torch.optim.SGD(net.parameters(), lr=0.1)
for step in range(15):
    x = torch.randn(20, 5); r = (net(x).squeeze(1) - x[:, 0]).abs()
    if step == 4: r = r * 0
    s = torch.quantile(r, 0.9)
    loss = (r / s).mean()  # BIRTH
    opt.zero_grad(); loss.backward(); opt.step()
