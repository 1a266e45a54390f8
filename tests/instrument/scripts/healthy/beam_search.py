import torch, torch.nn as nn, math
torch.manual_seed(0)
net = nn.GRU(8, 16, batch_first=True); emb = nn.Embedding(10, 8); out = nn.Linear(16, 10); ps = [*net.parameters(), *emb.parameters(), *out.parameters()]; opt = torch.optim.Adagrad(ps, 1e-2)
for it in range(10):
    t = torch.randint(0, 10, (4, 9)); h, _ = net(emb(t[:, :-1])); loss = nn.CrossEntropyLoss(label_smoothing=0.1)(out(h).transpose(1, 2), t[:, 1:]); opt.zero_grad(); loss.backward(); opt.step(); print(loss.item().hex())
with torch.no_grad():
    score = torch.full((3,), -math.inf); score[0] = 0; seqs = torch.zeros(3, 1, dtype=torch.long)
    for k in range(5):
        lp = out(net(emb(seqs))[0][:, -1]).log_softmax(-1); lp[:, 0] = -math.inf; v, i = (score[:, None] + lp).flatten().topk(3); score, seqs = v, torch.cat([seqs[i // 10], (i % 10)[:, None]], 1)
    tk = lp.topk(4).values[:, -1:]; p = lp.masked_fill(lp < tk, -math.inf).softmax(-1); print([s.hex() for s in score.tolist()], p.max().item().hex())
