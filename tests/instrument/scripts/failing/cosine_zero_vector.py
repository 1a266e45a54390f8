import torch, torch.nn as nn
torch.manual_seed(0)
emb = nn.Embedding(10, 4, padding_idx=0); opt = torch.optim.Adam(emb.parameters(), lr=1e-2)
for step in range(10):
    i = torch.randint(0, 10, (12,)); j = torch.randint(0, 10, (12,)); i[0] = 0
    a, b = emb(i), emb(j)
    cos = (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))  # BIRTH
    loss = (cos - 0.5).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
