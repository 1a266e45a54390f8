import torch, torch.nn as nn
torch.manual_seed(0)
d = nn.Parameter(torch.randn(12)); opt = torch.optim.Adam([d], lr=0.05)
for step in range(15):
    alpha = 1 - torch.exp(-torch.relu(d * 40))
    T = torch.cumprod(1 - alpha, 0)
    logT = torch.log(T)  # BIRTH
    loss = (T * logT).mean()
    opt.zero_grad(); loss.backward(); opt.step()
