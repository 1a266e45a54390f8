import torch
torch.manual_seed(0)
E = torch.nn.Parameter(torch.randn(10, 2) * 0.4); opt = torch.optim.SGD([E], lr=0.5)
def dist(u, v):
    du = (u - v).pow(2).sum(-1); a = 1 - u.pow(2).sum(-1); b = 1 - v.pow(2).sum(-1)
    return torch.acosh(1 + 2 * du / (a * b))  # BIRTH
for it in range(25):
    i = torch.randint(10, (6,)); j = torch.randint(10, (6,))
    loss = dist(E[i], E[j]).mean() - 0.5 * E.norm()
    opt.zero_grad(); loss.backward(); opt.step()
