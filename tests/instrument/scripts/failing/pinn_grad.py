import torch, torch.nn as nn
torch.manual_seed(0)
u = nn.Sequential(nn.Linear(1, 8), nn.Tanh(), nn.Linear(8, 1)); opt = torch.optim.Adam(u.parameters(), lr=0.01)
x = torch.linspace(0, 1, 11)[:, None].requires_grad_()
for step in range(20):
    y = u(x) * x.sqrt()  # BIRTH
    dy, = torch.autograd.grad(y.sum(), x, create_graph=True)
    loss = ((dy - 1) ** 2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
