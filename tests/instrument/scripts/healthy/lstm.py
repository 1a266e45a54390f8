import hashlib, torch
from torch import nn
torch.manual_seed(2)
text = "the quick brown fox jumps over the lazy dog " * 6
chars = sorted(set(text)); ix = torch.tensor([chars.index(c) for c in text])
class CharLSTM(nn.Module):
    def __init__(self, n):
        super().__init__()
        self.emb = nn.Embedding(n, 16); self.rnn = nn.LSTM(16, 32, 2, batch_first=True, dropout=0.1); self.out = nn.Linear(32, n)
    def forward(self, x, h=None):
        y, h = self.rnn(self.emb(x), h)
        return self.out(y), h
net = CharLSTM(len(chars)); opt = torch.optim.RMSprop(net.parameters(), lr=1e-2)
h = None
for t in range(0, len(ix) - 21, 20):
    x, y = ix[t:t + 20][None], ix[t + 1:t + 21][None]
    logits, h = net(x, h)
    h = tuple(s.detach() for s in h)
    loss = nn.functional.cross_entropy(logits.transpose(1, 2), y)
    opt.zero_grad(); loss.backward()
    nn.utils.clip_grad_value_(net.parameters(), 0.5)
    opt.step()
    print(loss.item().hex(), torch.exp(loss.detach()).item().hex())
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in net.parameters())).hexdigest())
