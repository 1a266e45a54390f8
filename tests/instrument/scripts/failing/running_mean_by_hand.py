import torch, torch.nn as nn
torch.manual_seed(0)
lin = nn.Linear(3, 3); opt = torch.optim.SGD(lin.parameters(), lr=0.1)
mean, sq = torch.zeros(3), torch.zeros(3)
for step in range(20):
    h = lin(torch.randn(8, 3))
    mean = 0.9 * mean + 0.1 * h.detach().mean(0); sq = 0.9 * sq + 0.1 * h.detach().pow(2).mean(0)
    std = (sq - mean ** 2 - 0.5).sqrt()  # BIRTH
    loss = (((h - mean) / std) - 1).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
