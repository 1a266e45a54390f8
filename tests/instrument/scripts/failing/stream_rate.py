# events stream -> rate features, several workers
import torch
import torch.nn as nn
from torch.utils.data import DataLoader, IterableDataset, get_worker_info


class EventStream(IterableDataset):
    def __init__(self, n):
        g = torch.Generator().manual_seed(8)
        self.times = torch.randint(1, 400, (n,), generator=g).cumsum(0)
        self.times[n // 2] = self.times[n // 2 - 1]       # two events in the same tick
        self.size = torch.rand(n, generator=g)

    def __iter__(self):
        info = get_worker_info()
        step, first = (info.num_workers, info.id) if info else (1, 0)
        for i in range(1 + first, len(self.times) - 1, step):
            yield i, self.times[i] - self.times[i - 1], self.size[i], self.size[i + 1]


def collate(items):
    _, dt, size, nxt = map(torch.tensor, zip(*items))
    rate = size / dt  # BIRTH
    x = torch.stack([rate * 100, size, dt / 400], 1)
    return x, nxt[:, None]


if __name__ == "__main__":
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Linear(16, 1))
    opt = torch.optim.SGD(net.parameters(), lr=1e-2)
    stream = EventStream(400)
    for epoch in range(2):
        for x, y in DataLoader(stream, batch_size=20, num_workers=2, collate_fn=collate):
            loss = nn.functional.mse_loss(net(x), y)
            opt.zero_grad()
            loss.backward()
            opt.step()
        print("epoch", epoch, "loss", loss.item())
