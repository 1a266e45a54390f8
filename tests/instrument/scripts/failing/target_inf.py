import torch, torch.nn as nn
torch.manual_seed(0)
price = torch.rand(100) * 5; price[40] = 0
ret = torch.log(price)  # BIRTH
net = nn.Linear(1, 1); opt = torch.optim.Adam(net.parameters(), lr=1e-2)
for epoch in range(3):
    for i in range(0, 100, 20):
        pred = net(price[i:i + 20, None]).squeeze(1)
        loss = (pred - ret[i:i + 20]).pow(2).mean()
        opt.zero_grad(); loss.backward(); opt.step()
loss = (net(price[:20, None]).squeeze(1) - ret[:20]).pow(2).mean()
