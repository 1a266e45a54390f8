import torch
torch.manual_seed(0)
q = torch.zeros(4, requires_grad=True)
def U(q): return torch.exp(q ** 2).sum()  # BIRTH
chain = []
for it in range(6):
    p = torch.randn(4) * 3; cur = q.detach().clone()
    for leap in range(10):
        loss = U(q)  # energy
        g, = torch.autograd.grad(loss, q)
        p = p - 0.5 * g
        q = (q + 0.5 * p).detach().requires_grad_()
    chain.append(loss.item())
