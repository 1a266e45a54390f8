import torch
torch.manual_seed(0)
x = torch.randn(50, 3); y = (x[:, 0] > 0).float()
w = torch.zeros(3, requires_grad=True); opt = torch.optim.LBFGS([w], lr=40.0, max_iter=8)
def closure():
    global loss
    opt.zero_grad()
    p = 1 / (1 + (-(x @ w)).exp())
    loss = -(y * p.log() + (1 - y) * (1 - p).log()).mean()  # BIRTH
    loss.backward()
    return loss
for _ in range(8):
    opt.step(closure)
