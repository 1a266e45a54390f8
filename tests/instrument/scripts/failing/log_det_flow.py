import torch, torch.nn as nn
torch.manual_seed(0)
net = nn.Linear(2, 2); opt = torch.optim.Adam(net.parameters(), lr=1.0)
for step in range(40):
    x = torch.randn(32, 2) * 30
    s = net(x)
    z = x * torch.exp(s)
    loss = (0.5 * z ** 2 - s).mean()  # BIRTH
    opt.zero_grad(); loss.backward(); opt.step()
