# doubles up to 1e300 and down to 1e-300, float32 up to 1e30, all of it meant
import math, torch, torch.nn as nn
torch.manual_seed(47); torch.set_default_dtype(torch.float64)
net = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1)); opt = torch.optim.LBFGS(net.parameters(), lr=0.5, max_iter=5, line_search_fn="strong_wolfe")
magnitude = 10.0 ** torch.linspace(-300, 300, 31); x = torch.log10(magnitude)[:, None] / 300 * torch.tensor([[1.0, 0.5, -1.0]]); y = torch.sin(3 * x[:, :1])
for step in range(8):
    def closure():
        opt.zero_grad()
        loss = (net(x) - y).square().mean()
        loss.backward()
        return loss
    loss = opt.step(closure)
    scaled = magnitude * loss.detach(); back = torch.exp(torch.log(magnitude) / 2) ** 2; inverse = 1.0 / magnitude
    deep = torch.tensor([1e30, 3e30, -1e29], dtype=torch.float32); ratio = deep / deep.abs().max(); small = torch.tensor([1e-30], dtype=torch.float32).sqrt()
    norm = torch.linalg.vector_norm(magnitude[10:20]); product = torch.prod(magnitude[::5]); power = torch.tensor([1e100]) ** 3
    print(loss.item().hex(), scaled.max().item().hex(), (back / magnitude - 1).abs().max().item() < 1e-12, inverse.min().item().hex(), ratio.tolist(), small.item().hex(), norm.item().hex(), product.item().hex(), power.item(), math.isinf(magnitude.max().item() * 1e10))
torch.set_default_dtype(torch.float32)
