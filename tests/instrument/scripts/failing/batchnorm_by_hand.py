import torch
torch.manual_seed(0)
g = torch.nn.Parameter(torch.ones(4)); lin = torch.nn.Linear(4, 4); opt = torch.optim.Adam([g, *lin.parameters()], lr=0.01)
for step in range(30):
    x = torch.randn(8, 4)
    if step == 12:
        x = x[:1].expand(8, 4)
    h = lin(x)
    n = (h - h.mean(0)) / h.var(0, unbiased=False).sqrt()  # BIRTH
    loss = ((n * g - 1) ** 2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
