import torch
torch.manual_seed(0)
s = torch.nn.Parameter(torch.ones(1)); opt = torch.optim.Adam([s], lr=0.01)
for step in range(20):
    x = 1000.0 + 1e-3 * torch.randn(64) * s
    var = (x ** 2).mean() - x.mean() ** 2
    std = torch.sqrt(var)  # BIRTH
    loss = (std - 1) ** 2
    opt.zero_grad(); loss.backward(); opt.step()
