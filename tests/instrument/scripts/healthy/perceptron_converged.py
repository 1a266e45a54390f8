import torch, torch.nn as nn

torch.manual_seed(0)
lin = nn.Linear(2, 1); opt = torch.optim.SGD(lin.parameters(), lr=0.5)
x = torch.randn(64, 2); x = x + 2 * x.sum(1, keepdim=True).sign(); y = x.sum(1).sign()
for step in range(60):
    margin = y * lin(x).squeeze(1)
    loss = (1 - margin).clamp(min=0).mean()
    opt.zero_grad(); loss.backward(); opt.step()
    if step % 10 == 0: print(step, loss.item())
print(loss.item(), lin.weight.tolist())
