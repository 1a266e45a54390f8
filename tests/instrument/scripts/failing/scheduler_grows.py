import torch, torch.nn as nn
torch.manual_seed(0)
net = nn.Linear(4, 1); opt = torch.optim.Adam(net.parameters(), lr=1e-3)
sched = torch.optim.lr_scheduler.ExponentialLR(opt, gamma=30.0)
x = torch.randn(32, 4); y = x.sum(1, keepdim=True)
for step in range(60):
    loss = nn.functional.mse_loss(net(x), y)
    opt.zero_grad(); loss.backward()
    opt.step()  # BIRTH
    sched.step()
