import torch, torch.nn as nn
torch.manual_seed(2)
age, income = torch.randint(18, 80, (200, 1)).float(), torch.randint(20000, 90000, (200, 1)).float()
y = (age > 40).float()
X = torch.cat([age, income], dim=1)
X = X.half()  # BIRTH
net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1)); opt = torch.optim.Adam(net.parameters(), lr=0.01)
for step in range(10):
    loss = nn.functional.binary_cross_entropy_with_logits(net(X.float()), y)
    opt.zero_grad(); loss.backward(); opt.step()
