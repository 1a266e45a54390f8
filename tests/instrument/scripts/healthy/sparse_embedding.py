import hashlib, torch, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(11)
inp = nn.Embedding(200, 16, sparse=True); out = nn.Embedding(200, 16, sparse=True); bag = nn.EmbeddingBag(200, 16, mode="sum", sparse=True)
o1 = torch.optim.Adagrad([*inp.parameters(), *out.parameters()], lr=0.1); o2 = torch.optim.SparseAdam(list(bag.parameters()), lr=0.01)
for step in range(20):                                        # skip-gram with negative samples
    c = torch.randint(0, 200, (32,)); ctx = torch.randint(0, 200, (32,)); neg = torch.randint(0, 200, (32, 5))
    v = inp(c)
    pos = F.logsigmoid((v * out(ctx)).sum(1)); negs = F.logsigmoid(-(out(neg) @ v[:, :, None]).squeeze(2)).sum(1)
    loss = -(pos + negs).mean() + bag(neg).square().mean()
    o1.zero_grad(); o2.zero_grad(); loss.backward()
    assert inp.weight.grad.is_sparse
    o1.step(); o2.step()
    print(loss.item().hex())
print(hashlib.sha256(b"".join(m.weight.detach().numpy().tobytes() for m in (inp, out, bag))).hexdigest())
