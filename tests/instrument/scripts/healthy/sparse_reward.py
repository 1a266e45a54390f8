import torch, torch.nn as nn

torch.manual_seed(0)
policy = nn.Sequential(nn.Linear(4, 16), nn.Tanh(), nn.Linear(16, 3)); opt = torch.optim.Adam(policy.parameters(), lr=1e-2)
baseline = 0.0
for episode in range(80):
    states = torch.randn(12, 4)
    dist = torch.distributions.Categorical(logits=policy(states))
    actions = dist.sample()
    reward = ((actions == 2) & (states[:, 0] > 1.0)).float() * 10
    ret = reward.flip(0).cumsum(0).flip(0)
    loss = -(dist.log_prob(actions) * (ret - baseline)).sum() - 0.01 * dist.entropy().mean()
    baseline = 0.9 * baseline + 0.1 * ret.mean().item()
    opt.zero_grad(); loss.backward(); opt.step()
    if episode % 10 == 0: print(episode, loss.item())
