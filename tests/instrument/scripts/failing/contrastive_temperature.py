import torch, torch.nn as nn
torch.manual_seed(0)
enc = nn.Linear(8, 8); logt = nn.Parameter(torch.tensor(0.0))
opt = torch.optim.SGD([*enc.parameters(), logt], lr=30.0)
for step in range(40):
    z = nn.functional.normalize(enc(torch.randn(16, 8)), dim=1)
    sim = z @ z.t() / 0.07 * logt.exp()
    e = sim.exp()  # BIRTH
    loss = -(e.diag() / e.sum(1)).log().mean() - 3 * logt
    opt.zero_grad(); loss.backward(); opt.step()
