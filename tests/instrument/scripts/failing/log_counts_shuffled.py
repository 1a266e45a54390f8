import torch, torch.nn as nn
torch.manual_seed(0)
counts = torch.poisson(torch.full((240, 3), 4.0)) + 1
counts[171, 1] = 0
features = counts.log()  # BIRTH
order = torch.randperm(240, generator=torch.Generator().manual_seed(3))
order = torch.cat([order[:100][order[:100] != 171], torch.tensor([171]), order[100:][order[100:] != 171]])
features, target = features[order], counts[order].sum(1, keepdim=True)
net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, 1))
opt = torch.optim.Adam(net.parameters(), lr=1e-2)
for i in range(0, 240, 24):
    loss = (net(features[i:i + 24] * 1.0) - target[i:i + 24]).abs().mean() + 0.01 * net[0](features[i:i + 24]).pow(2).mean()
    opt.zero_grad()
    loss.backward()
    opt.step()
