import torch, torch.nn as nn
torch.manual_seed(0)
q = nn.Linear(8, 8); k = nn.Linear(8, 8); opt = torch.optim.Adam([*q.parameters(), *k.parameters()], lr=1e-3)
for step in range(10):
    x = torch.randn(2, 5, 8); lens = torch.tensor([5, 0 if step % 2 else 3])
    mask = torch.zeros(2, 1, 5).masked_fill(torch.arange(5)[None, None] >= lens[:, None, None], float("-inf"))
    w = torch.softmax(q(x) @ k(x).transpose(1, 2) + mask, -1)  # BIRTH
    loss = (w @ x).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
