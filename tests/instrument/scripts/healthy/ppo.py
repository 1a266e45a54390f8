import hashlib, torch, torch.nn as nn
from torch.distributions import Normal
torch.manual_seed(17)
actor = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1)); critic = nn.Sequential(nn.Linear(3, 32), nn.Tanh(), nn.Linear(32, 1)); log_std = nn.Parameter(torch.zeros(1))
opt = torch.optim.Adam([*actor.parameters(), *critic.parameters(), log_std], lr=3e-3, eps=1e-5)
for update in range(4):
    s = torch.randn(64, 3)
    with torch.no_grad():
        dist = Normal(actor(s), log_std.exp()); a = dist.sample(); old = dist.log_prob(a); r = -(a - s.sum(1, keepdim=True)).abs()
        adv = r - critic(s); adv = (adv - adv.mean()) / (adv.std() + 1e-8); ret = r
    for epoch in range(4):
        for i in torch.randperm(64).split(16):
            dist = Normal(actor(s[i]), log_std.exp()); ratio = (dist.log_prob(a[i]) - old[i]).exp()
            pg = -torch.min(ratio * adv[i], ratio.clamp(0.8, 1.2) * adv[i]).mean()
            kl = ((ratio - 1) - ratio.log()).mean()
            loss = pg + 0.5 * nn.functional.mse_loss(critic(s[i]), ret[i]) - 0.01 * dist.entropy().mean()
            opt.zero_grad(); loss.backward(); nn.utils.clip_grad_norm_(actor.parameters(), 0.5); opt.step()
            print(loss.item().hex(), kl.item().hex())
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in [*actor.parameters(), *critic.parameters(), log_std])).hexdigest())
