import torch, torch.nn as nn
torch.manual_seed(0)
pi = nn.Linear(3, 2); opt = torch.optim.Adam(pi.parameters(), lr=0.1)
for episode in range(20):
    s = torch.randn(10, 3) * (200.0 if episode == 6 else 1.0)
    probs = torch.softmax(pi(s), dim=1)
    act = probs.argmin(1)
    logp = torch.log(probs.gather(1, act[:, None])).squeeze(1)  # BIRTH
    ret = torch.randn(10)
    loss = -(logp * ret).mean()
    opt.zero_grad(); loss.backward(); opt.step()
