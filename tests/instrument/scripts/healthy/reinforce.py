import hashlib, torch, torch.nn as nn
from torch.distributions import Categorical
torch.manual_seed(16)
policy = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 3)); opt = torch.optim.Adam(policy.parameters(), lr=1e-2)
for episode in range(12):
    pos, logps, rewards = torch.tensor([1.0, 0.0]), [], []
    for t in range(20):
        logits = policy(pos)
        if pos[0] > 1.5: logits = logits.masked_fill(torch.tensor([False, False, True]), float("-inf"))   # an action that is not allowed here
        dist = Categorical(logits=logits); a = dist.sample(); logps.append(dist.log_prob(a))
        pos = torch.stack([pos[0] + 0.3 * (a - 1), pos[1] + 0.05]); rewards.append(-float(pos[0].abs()))
    returns, g = [], 0.0
    for r in reversed(rewards): g = r + 0.95 * g; returns.insert(0, g)
    returns = torch.tensor(returns); returns = (returns - returns.mean()) / (returns.std() + 1e-8)
    loss = -(torch.stack(logps) * returns).sum()
    opt.zero_grad(); loss.backward(); opt.step()
    print(loss.item().hex(), sum(rewards).hex())
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in policy.parameters())).hexdigest())
