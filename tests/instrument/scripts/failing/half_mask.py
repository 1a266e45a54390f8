import torch, torch.nn as nn
torch.manual_seed(0)
q = nn.Linear(8, 8).half(); opt = torch.optim.SGD(q.parameters(), lr=0.01)
keep = torch.tensor([True, True, False])
for step in range(10):
    x = torch.randn(4, 3, 8).half()
    s = q(x) @ x.transpose(1, 2)
    s = s.masked_fill(~keep, -1e9)  # BIRTH
    loss = (s.float().softmax(-1) @ x.float()).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
