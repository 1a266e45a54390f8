import torch, torch.nn as nn
torch.manual_seed(0)
net = nn.Linear(5, 6); opt = torch.optim.Adam(net.parameters(), lr=1e-2); ctc = nn.CTCLoss()
for step in range(12):
    x = torch.randn(6, 2, 5); lp = net(x).log_softmax(-1)
    target = torch.tensor([[1, 1, 2, 2, 3, 3], [1, 2, 3, 4, 5, 1]])
    lens = torch.tensor([6, 3]) if step % 4 == 3 else torch.tensor([2, 3])
    loss = ctc(lp, target, torch.tensor([6, 6]), lens)  # BIRTH
    opt.zero_grad(); loss.backward(); opt.step()
