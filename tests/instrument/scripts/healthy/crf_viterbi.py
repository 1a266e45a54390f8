import torch, torch.nn as nn
torch.manual_seed(0)
emit = nn.Linear(4, 3); trans = nn.Parameter(torch.randn(3, 3)); opt = torch.optim.Adam([*emit.parameters(), trans], 1e-2)
mask = torch.zeros(3, 3); mask[0, 2] = float("-inf")
for it in range(12):
    x = torch.randn(10, 4); tags = torch.ones(10, dtype=torch.long); e = emit(x); T = trans + mask; a = e[0]
    for t in range(1, 10): a = torch.logsumexp(a[:, None] + T + e[t][None], 0)
    s = e[torch.arange(10), tags].sum() + T[tags[:-1], tags[1:]].sum()
    loss = torch.logsumexp(a, 0) - s; opt.zero_grad(); loss.backward(); opt.step()
    best = torch.full((3,), float("-inf")); best[0] = 0
    for t in range(10): best = (best[:, None] + T.detach()).max(0).values + e[t].detach()
    print(loss.item().hex(), best.max().item().hex())
