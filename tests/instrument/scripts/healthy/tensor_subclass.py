# a tensor subclass with a table of handlers, and a mode of the script's own that counts calls by function
import torch, torch.nn as nn
from collections import Counter
from torch.overrides import TorchFunctionMode
torch.manual_seed(41)
HANDLED = {}
def implements(f):
    def register(g):
        HANDLED[f] = g
        return g
    return register
class Metres(torch.Tensor):
    calls = Counter()
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.calls[getattr(func, "__name__", str(func))] += 1
        if func in HANDLED:
            return HANDLED[func](*args, **(kwargs or {}))
        return super().__torch_function__(func, types, args, kwargs or {})
@implements(torch.mean)
def mean(x, *a, **k): return x.as_subclass(torch.Tensor).sum() / x.numel()
@implements(torch.sqrt)
def root(x): return torch.sqrt(x.as_subclass(torch.Tensor).clamp(min=1e-6))
class Count(TorchFunctionMode):
    def __init__(self): super().__init__(); self.seen = Counter()
    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.seen["exp" if func is torch.exp else "softmax" if func is torch.softmax else func.__name__] += 1
        return func(*args, **(kwargs or {}))
net = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)); opt = torch.optim.Adam(net.parameters(), lr=1e-2)
x = torch.randn(32, 6); y = torch.randint(0, 3, (32,))
for step in range(10):
    d = (x * x).sum(1).as_subclass(Metres)
    weight = torch.exp(-torch.sqrt(d) / torch.mean(d))
    with Count() as mode:
        p = torch.softmax(net(x), -1)
        loss = -(torch.log(p[torch.arange(32), y]) * weight.as_subclass(torch.Tensor)).sum() / 32
        bonus = torch.exp(-p).mean()
    opt.zero_grad(); (loss + 0.01 * bonus).backward(); opt.step()
    print(loss.item().hex(), sorted(mode.seen.items()))
print(sorted(Metres.calls.items()))
