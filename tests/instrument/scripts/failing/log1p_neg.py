import torch, torch.nn as nn
torch.manual_seed(0)
net = nn.Linear(3, 1); opt = torch.optim.SGD(net.parameters(), lr=0.5)
for step in range(40):
    x = torch.randn(32, 3) * 3
    out = net(x).squeeze(1)
    loss = (torch.log1p(out) - x.sum(1).abs().log1p()).pow(2).mean()  # BIRTH
    opt.zero_grad(); loss.backward(); opt.step()
