import torch, torch.nn as nn
torch.manual_seed(0)
t = torch.sort(torch.rand(16, 30), dim=1).values; t[6, 11] = t[6, 10]
position = torch.cumsum(torch.randn(16, 30), 1)
speed = (position[:, 1:] - position[:, :-1]) / (t[:, 1:] - t[:, :-1])  # BIRTH
gru, head = nn.GRU(1, 8, batch_first=True), nn.Linear(8, 1); opt = torch.optim.Adam([*gru.parameters(), *head.parameters()], lr=1e-3)
for step in range(8):
    h, _ = gru(speed.unsqueeze(-1) * 0.01)
    loss = nn.functional.mse_loss(head(h[:, -1]), position[:, -1:]) + 1e-6 * speed.pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
