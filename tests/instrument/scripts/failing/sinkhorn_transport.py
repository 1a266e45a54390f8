import torch
torch.manual_seed(0)
x = torch.nn.Parameter(torch.randn(8, 2)); y = torch.randn(8, 2) * 6
opt = torch.optim.Adam([x], lr=0.05)
def sinkhorn(cost, eps):
    K = torch.exp(-cost / eps)
    u = torch.ones(8) / 8
    for _ in range(20):
        v = (torch.ones(8) / 8) / (K.t() @ u)  # BIRTH
        u = (torch.ones(8) / 8) / (K @ v)
    return (u[:, None] * K * v[None, :] * cost).sum()
for step in range(20):
    cost = ((x[:, None] - y[None]) ** 2).sum(-1)
    loss = sinkhorn(cost, 0.01)
    opt.zero_grad(); loss.backward(); opt.step()
