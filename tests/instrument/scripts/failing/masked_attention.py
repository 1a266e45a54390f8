import torch, torch.nn as nn
torch.manual_seed(0)
q = nn.Linear(8, 8); v = nn.Linear(8, 1)
opt = torch.optim.AdamW([*q.parameters(), *v.parameters()], lr=1e-2)
for step in range(30):
    x = torch.randn(4, 6, 8)
    length = torch.randint(0, 7, (4,)); length[0] = 0
    keep = torch.arange(6)[None] < length[:, None]
    score = (q(x) @ x.transpose(1, 2)).masked_fill(~keep[:, None], float('-inf'))
    att = score.softmax(-1)  # BIRTH
    loss = (v(att @ x).mean() - 1) ** 2
    opt.zero_grad(); loss.backward(); opt.step()
