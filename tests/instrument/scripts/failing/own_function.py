import torch
class Inv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0.1).reciprocal()
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return -g / (x * x) * (x * 0 + float('inf')) * 0
w = torch.nn.Parameter(torch.tensor([0.5, 2.0]))
opt = torch.optim.SGD([w], lr=0.01)
for step in range(10):
    y = Inv.apply(w)  # BIRTH
    loss = y.sum()
    opt.zero_grad(); loss.backward(); opt.step()
