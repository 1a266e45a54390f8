import torch
torch.manual_seed(0)
w = torch.randn(5, 3, requires_grad=True)
class Sgd:
    def __init__(self, ps, lr): self.ps, self.lr = ps, lr
    def step(self):
        for p in self.ps:
            p.data = p.data - self.lr * p.grad
            p.grad = None
opt = Sgd([w], 0.05)
for it in range(12):
    x = torch.rand(8, 5); x[0] = 0
    h = (x @ w).abs()
    loss = h.prod(1).pow(1 / 3).mean()  # BIRTH
    loss.backward(); opt.step()
