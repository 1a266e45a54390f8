import io, torch, torch.nn as nn
torch.manual_seed(0)
def build(): return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))
old = build()
with torch.no_grad(): old[2].weight[0, 3] = float("nan")
buffer = io.BytesIO(); torch.save(old.state_dict(), buffer); buffer.seek(0)
del old; net = build()
net.load_state_dict(torch.load(buffer))  # BIRTH
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
for step in range(10):
    x = torch.randn(16, 4)
    loss = (net(x) - x.sum(1, keepdim=True)).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
