import torch, torch.nn as nn
torch.manual_seed(0)
emit = nn.Linear(4, 3); trans = nn.Parameter(torch.randn(3, 3)); opt = torch.optim.SGD([*emit.parameters(), trans], lr=0.1)
def log_z(e):
    alpha = torch.exp(e[0])
    for t in range(1, len(e)):
        alpha = (alpha[:, None] * torch.exp(trans) * torch.exp(e[t])[None]).sum(0)  # BIRTH
    return torch.log(alpha.sum())
for it in range(8):
    x = torch.randn(200, 4); tags = torch.randint(0, 3, (200,))
    e = emit(x)
    score = e[torch.arange(200), tags].sum() + trans[tags[:-1], tags[1:]].sum()
    loss = (log_z(e) - score) / 200
    opt.zero_grad(); loss.backward(); opt.step()
