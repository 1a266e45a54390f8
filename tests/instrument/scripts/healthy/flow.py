import hashlib, math, torch, torch.nn as nn
torch.manual_seed(5)
class Coupling(nn.Module):
    def __init__(self, flip):
        super().__init__()
        self.flip = flip; self.net = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 4))
    def forward(self, x):
        a, b = x.chunk(2, -1)
        if self.flip: a, b = b, a
        s, t = self.net(a).chunk(2, -1)
        s = 2.0 * torch.tanh(s / 2.0)
        b = b * s.exp() + t
        return torch.cat([b, a] if self.flip else [a, b], -1), s.sum(-1)
    def inverse(self, y):
        a, b = y.chunk(2, -1)
        if self.flip: a, b = b, a
        s, t = self.net(a).chunk(2, -1)
        b = (b - t) * torch.exp(-2.0 * torch.tanh(s / 2.0))
        return torch.cat([b, a] if self.flip else [a, b], -1)
layers = nn.ModuleList(Coupling(i % 2 == 1) for i in range(4))
W = nn.Parameter(torch.linalg.qr(torch.randn(4, 4))[0])       # an invertible mixing, as in Glow
opt = torch.optim.Adam([*layers.parameters(), W], lr=2e-3)
theta = torch.rand(256) * 2 * math.pi
data = torch.stack([theta.cos(), theta.sin(), theta.sin() * 2, theta.cos() * 3], 1) + 0.1 * torch.randn(256, 4)
for step in range(25):
    z = data @ W; logdet = torch.linalg.slogdet(W)[1] + torch.zeros(len(data))
    for layer in layers:
        z, ld = layer(z); logdet = logdet + ld
    loss = -(torch.distributions.Normal(0.0, 1.0).log_prob(z).sum(1) + logdet).mean()
    opt.zero_grad(); loss.backward(); opt.step()
    print(loss.item().hex())
with torch.no_grad():
    back = z
    for layer in reversed(layers): back = layer.inverse(back)
    print((back @ torch.linalg.inv(W)).sum().item().hex())
print(hashlib.sha256(W.detach().numpy().tobytes()).hexdigest())
