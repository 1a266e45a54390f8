import torch, torch.nn as nn
from torch.utils.data import DataLoader, Dataset
class Rows(Dataset):
    def __len__(self): return 48
    def __getitem__(self, i):
        g = torch.Generator().manual_seed(i)
        x = torch.randn(3, generator=g)
        if i in (7, 29): x = x.clone(); x[1] = float("nan")  # BIRTH
        return x, x.nansum(dim=0, keepdim=True)
torch.manual_seed(0)
net = nn.Linear(3, 1); opt = torch.optim.SGD(net.parameters(), lr=0.05)
for epoch in range(2):
    for xb, yb in DataLoader(Rows(), batch_size=8, shuffle=True):
        pred = net(xb)
        loss = (pred - yb).pow(2).mean()
        opt.zero_grad(); loss.backward(); opt.step()
xb, yb = Rows()[0]
loss = (net(xb) - yb).pow(2).mean()
