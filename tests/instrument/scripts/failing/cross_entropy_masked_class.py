import torch, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(0)
net = nn.Linear(4, 5); opt = torch.optim.Adam(net.parameters(), lr=1e-2)
for step in range(20):
    x = torch.randn(16, 4); y = torch.randint(5, (16,))
    logits = net(x)
    logits[:, 4] = float('-inf')
    loss = F.cross_entropy(logits, y)  # BIRTH
    opt.zero_grad(); loss.backward(); opt.step()
