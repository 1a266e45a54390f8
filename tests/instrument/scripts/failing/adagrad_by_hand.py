import torch, torch.nn.functional as F
torch.manual_seed(0)
E, W = (torch.randn(20, 6) * 0.1).requires_grad_(), (torch.randn(6, 2) * 0.1).requires_grad_()
seen = {E: torch.zeros_like(E), W: torch.zeros_like(W)}
for step in range(10):
    words = torch.randint(0, 15, (16, 4))  # five never occur
    loss = F.cross_entropy(E[words].mean(1) @ W, (words[:, 0] > 7).long())
    gradients = torch.autograd.grad(loss, (E, W))
    with torch.no_grad():
        for p, g in zip((E, W), gradients):
            seen[p] += g * g
            p -= 0.1 * g / seen[p].sqrt()  # BIRTH
loss = E.sum()
