import hashlib, torch, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(1)
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c1 = nn.Conv2d(1, 8, 3, padding=1); self.b1 = nn.BatchNorm2d(8)
        self.c2 = nn.Conv2d(8, 16, 3, padding=1); self.g = nn.GroupNorm(4, 16)
        self.fc = nn.Linear(16 * 4 * 4, 10)
    def forward(self, x):
        x = F.max_pool2d(F.relu(self.b1(self.c1(x))), 2)
        x = F.avg_pool2d(F.gelu(self.g(self.c2(x))), 2)
        return F.log_softmax(self.fc(x.flatten(1)), dim=1)
net = Net()
opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
x = torch.randn(64, 1, 16, 16); y = torch.randint(0, 10, (64,))
for epoch in range(4):
    for a in range(0, 64, 16):
        loss = F.nll_loss(net(x[a:a + 16]), y[a:a + 16])
        opt.zero_grad(set_to_none=False); loss.backward(); opt.step()
        print(loss.item().hex())
net.eval()
with torch.no_grad():
    print((net(x).argmax(1) == y).float().mean().item().hex())
print(hashlib.sha256(b"".join(v.numpy().tobytes() for v in net.state_dict().values())).hexdigest())
