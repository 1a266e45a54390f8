import torch, torch.nn as nn, argparse
parser = argparse.ArgumentParser(); parser.add_argument("--lr", type=float, default=1e-2); args = parser.parse_args()
torch.manual_seed(0)
class Coupling(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(1, 16), nn.ReLU(), nn.Linear(16, 2))
    def forward(self, x):
        a, b = x[:, :1], x[:, 1:]
        s, t = self.net(a).chunk(2, 1)
        y = (b - t) / s.relu()  # BIRTH
        return torch.cat([a, y], 1), -s.relu().add(1e-3).log().sum(1)
flow = Coupling(); opt = torch.optim.Adam(flow.parameters(), lr=args.lr)
for it in range(15):
    x = torch.randn(32, 2)
    z, ld = flow(x)
    loss = (0.5 * z.pow(2).sum(1) - ld).mean()
    opt.zero_grad(); loss.backward(); opt.step()
