import torch, torch.nn as nn
torch.manual_seed(0)
pi = nn.Linear(3, 4); opt = torch.optim.Adam(pi.parameters(), lr=0.01)
for step in range(20):
    s = torch.randn(5, 3)
    score = pi(s)
    w = torch.relu(score - (10 if step % 5 == 2 else 0))
    a = torch.multinomial(w, 1)  # BIRTH
    loss = -(score.log_softmax(1).gather(1, a)).mean()
    opt.zero_grad(); loss.backward(); opt.step()
