import torch
torch.manual_seed(0)
w = torch.nn.Parameter(torch.zeros(3)); opt = torch.optim.SGD([w], lr=0.1)
for step in range(30):
    x = torch.randn(5, 3); m = (torch.rand(5) > (0.99 if step % 9 == 5 else 0.3)).float()
    e = ((x @ w - 1) ** 2) * m
    loss = e.sum() / m.sum()  # BIRTH
    opt.zero_grad(); loss.backward(); opt.step()
