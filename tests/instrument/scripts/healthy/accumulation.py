import hashlib, torch, torch.nn as nn
torch.manual_seed(14)
net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1)); opt = torch.optim.NAdam(net.parameters(), lr=1e-3)
x = torch.randn(128, 8); y = torch.sin(x.sum(1, keepdim=True)); best = float("inf"); worst = -float("inf"); patience = 0
for epoch in range(6):
    running = torch.tensor(float("inf"))
    for k, a in enumerate(range(0, 128, 16)):
        loss = nn.functional.smooth_l1_loss(net(x[a:a + 16]), y[a:a + 16]) / 4
        loss.backward()
        if (k + 1) % 4 == 0:
            opt.step(); opt.zero_grad()
        running = torch.minimum(running, loss.detach())
        print(loss.item().hex())
    if running.item() < best: best, patience = running.item(), 0
    else: patience += 1
    worst = max(worst, running.item())
print(best.hex(), worst.hex(), patience, hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest())
