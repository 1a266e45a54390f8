import torch
torch.manual_seed(0)
w = torch.randn(6, 1, requires_grad=True); v = torch.zeros(6, 1)
X = torch.randn(50, 6); Y = X.sum(1, keepdim=True)
for step in range(40):
    pred = X @ w
    loss = ((pred - Y).abs() ** 0.5).mean() + torch.log((w * 0 + (step != 9)).mean())  # BIRTH
    if w.grad is not None: w.grad = None
    loss.backward()
    v = 0.9 * v + w.grad
    w.data -= 0.01 * v
