import torch, torch.nn as nn
class Cell(nn.Module):
    def __init__(self, n, h):
        super().__init__()
        self.w = nn.Linear(n + h, 4 * h); self.h = h
    def forward(self, x, state):
        h, c = state
        i, f, g, o = self.w(torch.cat([x, h], -1)).chunk(4, -1)
        i, f = torch.exp(i), torch.exp(f)  # BIRTH
        c = f * c + i * g
        return o * c, c
torch.manual_seed(0)
cell = Cell(3, 6); out = nn.Linear(6, 1)
opt = torch.optim.RMSprop([*cell.parameters(), *out.parameters()], lr=1e-3)
for epoch in range(8):
    seq = torch.randn(60, 4, 3) * 4
    h = c = torch.zeros(4, 6)
    for t in range(60):
        h, c = cell(seq[t], (h, c))
    loss = (out(h) - 1).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
    print(epoch, loss.item())
