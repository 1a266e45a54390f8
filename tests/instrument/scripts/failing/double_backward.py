import torch
torch.manual_seed(0)
w = torch.nn.Parameter(torch.ones(3)); opt = torch.optim.SGD([w], lr=0.01)
for step in range(10):
    x = torch.randn(8, 3, requires_grad=True); x.data[0] = 0
    f = ((x * w).pow(2).sum(1) + 0.0).sqrt().sum()  # BIRTH
    g, = torch.autograd.grad(f, x, create_graph=True)
    loss = (g.pow(2).sum(1) - 1).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
