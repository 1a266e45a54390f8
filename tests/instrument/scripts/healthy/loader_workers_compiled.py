# worker processes, a compiled model, copies, pickles, a script and a trace beside the eager one
import copy, io, pickle, torch, torch.nn as nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler
torch.manual_seed(48)
class Wave(Dataset):
    def __len__(self): return 48
    def __getitem__(self, i):
        t = torch.arange(12.0) + i
        return torch.sin(t / 5) / (t.sqrt() + 1), torch.tensor(float(i % 2))
class Net(nn.Module):
    def __init__(self): super().__init__(); self.a = nn.Linear(12, 10); self.b = nn.Linear(10, 1); self.activation = torch.exp
    def forward(self, x):
        h = torch.softmax(self.a(x), -1)
        return self.b(self.activation(-h) / (h.norm(dim=-1, keepdim=True) + 1e-3)).squeeze(-1)
net = Net(); compiled = torch.compile(net, backend="eager", fullgraph=True); opt = torch.optim.NAdam(net.parameters(), lr=1e-2)
loader = DataLoader(Wave(), batch_size=12, num_workers=2, sampler=WeightedRandomSampler([1.0] * 48, 48, generator=torch.Generator().manual_seed(3)), multiprocessing_context="fork")
for epoch in range(3):
    for x, y in loader:
        loss = nn.functional.binary_cross_entropy_with_logits(compiled(x), y)
        opt.zero_grad(); loss.backward(); opt.step()
        print(loss.item().hex())
twin = copy.deepcopy(net); stored = pickle.loads(pickle.dumps(net)); buffer = io.BytesIO(); torch.save(net.state_dict(), buffer); buffer.seek(0)
fresh = Net(); fresh.load_state_dict(torch.load(buffer)); traced = torch.jit.trace(net, x) if hasattr(torch.jit, "trace") else net
print([m(x).sum().item().hex() for m in (net, twin, stored, fresh, traced)])
