import torch, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(0)
emb = nn.Embedding(16, 16, padding_idx=0); W = nn.Linear(16, 48); O = nn.Linear(16, 16); opt = torch.optim.AdamW([*emb.parameters(), *W.parameters(), *O.parameters()], 3e-3)
inv = 1.0 / (10000 ** (torch.arange(0, 16, 2) / 16)); ang = torch.outer(torch.arange(7), inv); cos, sin = ang.cos().repeat(1, 2), ang.sin().repeat(1, 2)
rot = lambda t: t * cos + torch.cat([-t[..., 8:], t[..., :8]], -1) * sin
bias = -(torch.arange(7)[:, None] - torch.arange(7)).abs().float() * 0.25; bias = bias.masked_fill(torch.ones(7, 7).triu(1).bool(), float("-inf"))
for it in range(12):
    t = torch.randint(1, 16, (4, 8)); t[0, 6:] = 0; q, k, v = W(emb(t[:, :-1])).chunk(3, -1)
    h = F.scaled_dot_product_attention(rot(q), rot(k), v, attn_mask=bias); loss = F.cross_entropy(O(h).flatten(0, 1), t[:, 1:].flatten(), ignore_index=0)
    opt.zero_grad(); loss.backward(); opt.step(); print(loss.item().hex())
