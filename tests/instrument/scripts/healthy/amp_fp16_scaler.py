import hashlib, torch, torch.nn as nn
torch.manual_seed(13)
net = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1)); opt = torch.optim.Adam(net.parameters(), lr=1e-3)
scaler = torch.amp.GradScaler("cpu", init_scale=2.0 ** 24, growth_interval=5)     # too high at first: the scaler finds its scale by overflowing
x = torch.randn(64, 16); y = x.sum(1, keepdim=True)
for step in range(25):
    opt.zero_grad()
    with torch.autocast("cpu", dtype=torch.float16):
        loss = nn.functional.mse_loss(net(x), y)
    scaler.scale(loss).backward()
    if step % 2:
        scaler.unscale_(opt)
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
    scaler.step(opt); scaler.update()
    print(loss.item().hex(), scaler.get_scale().hex())
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest())
