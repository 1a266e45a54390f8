import torch
class Ratio(torch.autograd.Function):
    @staticmethod
    def forward(ctx, a, b):
        ctx.save_for_backward(a, b)
        return a / b  # BIRTH
    @staticmethod
    def backward(ctx, g):
        a, b = ctx.saved_tensors
        return g / b, -g * a / b ** 2
torch.manual_seed(0)
p = torch.nn.Parameter(torch.ones(4)); opt = torch.optim.SGD([p], lr=0.1)
for it in range(12):
    den = torch.rand(4)
    if it % 3 == 2: den[1] = 0
    loss = Ratio.apply(p, den).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
loss = p.sum()
