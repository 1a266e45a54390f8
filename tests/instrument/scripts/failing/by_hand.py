import torch
torch.manual_seed(0)
w = torch.randn(3, requires_grad=True)
for step in range(30):
    x = torch.randn(10, 3); y = x.sum(1)
    r = (x @ w - y)
    loss = r.abs().sqrt().mean() + (w - w).pow(0.5).sum()  # BIRTH
    loss.backward()
    with torch.no_grad():
        w -= 0.05 * w.grad
        w.grad.zero_()
