import hashlib, torch, torch.nn as nn
torch.manual_seed(12)
net = nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.LayerNorm(64), nn.Linear(64, 4)); opt = torch.optim.AdamW(net.parameters(), lr=1e-3)
x = torch.randn(64, 16); y = torch.randint(0, 4, (64,))
for step in range(20):
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = net(x)
        p = logits.softmax(-1); entropy = -(p * p.clamp_min(1e-6).log()).sum(-1).mean()
        loss = nn.functional.cross_entropy(logits, y) - 0.01 * entropy
    opt.zero_grad(); loss.backward(); opt.step()
    print(loss.item().hex())
half = nn.Linear(16, 16).bfloat16(); sgd = torch.optim.SGD(half.parameters(), lr=0.1)
for step in range(5):
    loss = half(x.bfloat16()).pow(2).mean().sqrt(); sgd.zero_grad(); loss.backward(); sgd.step(); print(loss.item().hex())
print(hashlib.sha256(b"".join(p.detach().float().numpy().tobytes() for m in (net, half) for p in m.parameters())).hexdigest())
