import torch, torch.nn as nn
torch.manual_seed(0)
a = nn.Linear(6, 6); b = nn.Linear(6, 1); opt = torch.optim.SGD([*a.parameters(), *b.parameters()], lr=1e-3)
for step in range(450):
    x = torch.randn(16, 6) * (1e20 if step % 200 == 150 else 1.0)
    h = a(x)
    g = h * h.flip(1)  # BIRTH
    loss = torch.tanh(b(g)).mean() + (g - g).mean()
    opt.zero_grad(); loss.backward(); opt.step()
loss = b(a(torch.randn(4, 6))).mean()
