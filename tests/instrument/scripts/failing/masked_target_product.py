import torch, torch.nn as nn
torch.manual_seed(0)
legal = torch.rand(40, 6) > 0.3; legal[:, 0] = True
target = nn.functional.one_hot(torch.zeros(40, dtype=torch.long), 6).float()
x = torch.randn(40, 12); net = nn.Linear(12, 6); opt = torch.optim.SGD(net.parameters(), lr=0.1)
for step in range(6):
    logp = torch.log_softmax(net(x).masked_fill(~legal, float("-inf")), dim=-1)
    loss = -(target * logp).sum(-1).mean()  # BIRTH
    opt.zero_grad(); loss.backward(); opt.step()
