import hashlib, torch, torch.nn as nn, torch.nn.functional as F
from torch import exp, log, softmax
torch.manual_seed(18)
net = nn.Linear(8, 6); opt = torch.optim.SGD(net.parameters(), lr=0.1); x = torch.randn(32, 8)
allowed = torch.ones(6); allowed[4:] = 0.0; best = torch.tensor(float("inf")); seen = torch.full((6,), -float("inf"))
big = torch.tensor([1e30, -1e30, 3e38]); huge = torch.tensor([1e300], dtype=torch.double)
for step in range(15):
    logits = net(x) + log(allowed)                       # log(0) = -inf forbids two classes
    y = torch.randint(0, 4, (32,))
    loss = F.nll_loss(torch.log(softmax(logits, dim=1)[:, :4]), y)
    causal = torch.triu(torch.full((6, 6), float("-inf")), diagonal=1)
    att = softmax(torch.randn(6, 6) + causal, dim=-1); att2 = F.scaled_dot_product_attention(x[None, :6], x[None, :6], x[None, :6], attn_mask=causal)
    lse = torch.logsumexp(torch.where(allowed > 0, logits, torch.tensor(-float("inf"))), dim=1)
    loss = loss + 1e-3 * lse.square().mean() + 0 * att.sum()
    seen = torch.maximum(seen, logits.detach().max(0).values); best = torch.minimum(best, loss.detach())
    zero = exp(torch.tensor([-float("inf"), -1e4, -200.0]))         # exp(-inf) = 0
    viterbi = torch.logaddexp(torch.full((3,), -float("inf")), torch.zeros(3))
    opt.zero_grad(); loss.backward(); opt.step()
    print(loss.item().hex(), best.item().hex(), att2.sum().item().hex(), zero.tolist(), viterbi.tolist(), (big < float("inf")).all().item(), (huge * 2).item().hex())
print(seen.tolist(), hashlib.sha256(net.weight.detach().numpy().tobytes()).hexdigest())
