import torch
torch.manual_seed(0)
def init(sizes): return [(torch.randn(a, b).mul_(3).requires_grad_(), torch.zeros(b, requires_grad=True)) for a, b in zip(sizes, sizes[1:])]
def forward(params, x):
    for W, b in params[:-1]:
        x = torch.exp(x @ W + b)  # BIRTH
    W, b = params[-1]
    return x @ W + b
params = init([4, 8, 8, 1]); (w1, b1), (w2, b2), (w3, b3) = params
for it in range(10):
    x = torch.randn(16, 4)
    loss = (forward(params, x) - x.sum(1, keepdim=True)).abs().mean()
    flat = [t for pair in params for t in pair]
    grads = torch.autograd.grad(loss, flat)
    with torch.no_grad():
        for p, g in zip(flat, grads): p.copy_(p - 1e-3 * g)
