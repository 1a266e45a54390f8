import hashlib, torch, torch.nn as nn
from torch.utils.checkpoint import checkpoint
torch.manual_seed(20)
class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        self.att = nn.MultiheadAttention(16, 4, dropout=0.1, batch_first=True); self.ff = nn.Linear(16, 16); self.n = nn.LayerNorm(16)
    def forward(self, x):
        return self.n(x + self.ff(torch.exp(-self.att(x, x, x, need_weights=False)[0].square())))
layers = nn.ModuleList(Layer() for _ in range(3)); opt = torch.optim.Adadelta(layers.parameters(), lr=0.5); x = torch.randn(4, 10, 16)
for step in range(10):
    h = x.clone().requires_grad_()
    for k, layer in enumerate(layers): h = checkpoint(layer, h, use_reentrant=k % 2 == 0)
    loss = (h.pow(2).mean(-1) + 1e-5).rsqrt().mean() + h.std(dim=1).mean() + torch.log1p(h.abs()).mean()
    opt.zero_grad(); loss.backward(retain_graph=True); loss.backward(); opt.step()
    print(loss.item().hex())
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in layers.parameters())).hexdigest())
