import torch, torch.nn as nn
torch.manual_seed(0)
class Cell(nn.Module):
    def __init__(self):
        super().__init__(); self.w = nn.Parameter(torch.randn(8, 8)); self.u = nn.Linear(3, 8)
    def forward(self, x, h):
        return torch.relu(h @ self.w + self.u(x))  # BIRTH
cell = Cell(); head = nn.Linear(8, 1); opt = torch.optim.Adam([*cell.parameters(), *head.parameters()], lr=1e-3)
for step in range(10):
    seq = torch.randn(200, 4, 3); h = torch.zeros(4, 8)
    for x in seq: h = cell(x, h)
    loss = (head(h) - 1).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
