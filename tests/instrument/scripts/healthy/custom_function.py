# functions with a backward of their own, differentiated twice, under both kinds of checkpoint, with hooks that scale
import torch, torch.nn as nn
from torch.utils.checkpoint import checkpoint
torch.manual_seed(44)
class Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(-1, 1).exp()
    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * x.clamp(-1, 1).exp() / (1 + x.abs())
class Block(nn.Module):
    def __init__(self): super().__init__(); self.a = nn.Linear(10, 10); self.n = nn.LayerNorm(10)
    def forward(self, x): return x + Clipped.apply(self.n(self.a(x))).log1p()
blocks = nn.ModuleList(Block() for _ in range(4)); head = nn.Linear(10, 1)
opt = torch.optim.RMSprop([*blocks.parameters(), *head.parameters()], lr=1e-3, momentum=0.9); x = torch.randn(20, 10); y = torch.randn(20, 1)
handles = [b.register_full_backward_hook(lambda m, gi, go: tuple(g * 0.5 if g is not None else None for g in gi)) for b in blocks[:1]]
for step in range(10):
    xin = x.clone().requires_grad_()
    h = xin
    for i, b in enumerate(blocks):
        h = checkpoint(b, h, use_reentrant=False) if i % 2 else b(h)
    out = head(h); loss = (out - y).abs().mean()
    (gx,) = torch.autograd.grad(out.sum(), xin, create_graph=True)
    penalty = ((gx.square().sum(1) + 1e-12).sqrt() - 1).square().mean()
    opt.zero_grad(); (loss + 0.1 * penalty).backward(); opt.step()
    if step % 3 == 0:
        again = checkpoint(blocks[1], x.clone().requires_grad_(), use_reentrant=True); again.sum().backward()
    print(loss.item().hex(), penalty.item().hex(), sum(p.grad.abs().sum() for p in blocks.parameters()).item().hex())
