import torch, torch.nn as nn
from torch.utils.data import DataLoader, Dataset
class Images(Dataset):
    def __len__(self): return 32
    def __getitem__(self, i):
        x = torch.rand(8, generator=torch.Generator().manual_seed(i)) * (i != 21)
        x = x / x.max()  # BIRTH
        return x, torch.tensor(i % 2)
torch.manual_seed(0)
net = nn.Linear(8, 2); opt = torch.optim.SGD(net.parameters(), lr=0.1)
for epoch in range(2):
    for x, y in DataLoader(Images(), batch_size=8, num_workers=1, multiprocessing_context="fork"):
        loss = nn.functional.cross_entropy(net(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
