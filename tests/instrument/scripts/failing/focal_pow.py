import torch
torch.manual_seed(0)
w = torch.nn.Parameter(torch.zeros(3)); opt = torch.optim.SGD([w], lr=0.1)
x = torch.eye(3)
for step in range(20):
    p = torch.clamp(x @ w + 1.0, 0, 1)
    loss = ((1 - p) ** 0.5).mean() + (w ** 2).mean()  # BIRTH
    opt.zero_grad(); loss.backward(); opt.step()
