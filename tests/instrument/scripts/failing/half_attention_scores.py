import torch, torch.nn as nn
torch.manual_seed(0)
q, k, v, out = (nn.Linear(64, 64).half() for _ in range(4))
x = (torch.randn(4, 8, 64) * 300).half(); y = torch.tensor([0, 1, 0, 1])
opt = torch.optim.SGD([p for m in (q, k, v, out) for p in m.parameters()], lr=1e-4)
for step in range(8):
    scores = torch.matmul(q(x), k(x).transpose(-2, -1))  # BIRTH
    h = torch.softmax(scores / 8.0, dim=-1) @ v(x)
    loss = nn.functional.cross_entropy(out(h.mean(1) / 100)[:, :2].float(), y)
    opt.zero_grad(); loss.backward(); opt.step()
