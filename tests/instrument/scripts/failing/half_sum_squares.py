import torch, torch.nn as nn
torch.manual_seed(0)
lin = nn.Linear(64, 64).half(); opt = torch.optim.SGD(lin.parameters(), lr=1e-3)
for step in range(10):
    x = (torch.randn(32, 64) * 20).half()
    h = lin(x)
    energy = (h * h).sum()  # BIRTH
    loss = energy / h.numel()
    opt.zero_grad(); loss.backward(); opt.step()
