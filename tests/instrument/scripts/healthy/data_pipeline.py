import hashlib, io, torch, torch.nn as nn
from torch.utils.data import DataLoader, Dataset
torch.manual_seed(24)
class Waves(Dataset):
    def __len__(self): return 96
    def __getitem__(self, i):
        t = torch.linspace(0, 1, 32); return torch.sin((i % 7 + 1) * t) * torch.exp(-t), i % 7
net = nn.Sequential(nn.Unflatten(1, (1, 32)), nn.Conv1d(1, 8, 5), nn.InstanceNorm1d(8, affine=True), nn.ELU(), nn.AdaptiveAvgPool1d(4), nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(32, 16)), nn.Hardswish(), nn.utils.parametrizations.spectral_norm(nn.Linear(16, 7)))
opt = torch.optim.RAdam(net.parameters(), lr=1e-2); plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(opt, patience=0, factor=0.5)
for epoch in range(3):
    total = 0.0
    for x, y in DataLoader(Waves(), batch_size=24, shuffle=True, generator=torch.Generator().manual_seed(epoch)):
        logits = net(x); loss = nn.functional.multi_margin_loss(logits, y) + nn.functional.cross_entropy(logits, y, weight=torch.arange(1.0, 8.0))
        opt.zero_grad(); loss.backward(); opt.step(); total += loss.item(); print(loss.item().hex())
    plateau.step(total)
    buffer = io.BytesIO(); torch.save({"net": net.state_dict(), "opt": opt.state_dict()}, buffer); buffer.seek(0)
    saved = torch.load(buffer, weights_only=True); net.load_state_dict(saved["net"]); opt.load_state_dict(saved["opt"])     # resume
print(hashlib.sha256(b"".join(v.numpy().tobytes() for v in net.state_dict().values())).hexdigest())
