import hashlib, torch, torch.nn as nn
torch.manual_seed(22)
emb = nn.Embedding(20, 16, padding_idx=0); tf = nn.Transformer(16, 2, 1, 1, 32, dropout=0.1, batch_first=True); head = nn.Linear(16, 20)
params = [*emb.parameters(), *tf.parameters(), *head.parameters()]
opt = torch.optim.Adam(params, lr=1e-3, betas=(0.9, 0.98), eps=1e-9); noam = torch.optim.lr_scheduler.LambdaLR(opt, lambda s: min((s + 1) ** -0.5, (s + 1) * 5 ** -1.5))
src = torch.randint(1, 20, (8, 7)); src[:, 5:] = 0; tgt = torch.cat([torch.ones(8, 1, dtype=torch.long), src[:, :5].flip(1)], 1)
for step in range(15):
    causal = nn.Transformer.generate_square_subsequent_mask(5); pad = src == 0
    out = tf(emb(src) * 4.0, emb(tgt[:, :-1]) * 4.0, tgt_mask=causal, src_key_padding_mask=pad.float().masked_fill(pad, float("-inf")), memory_key_padding_mask=pad.float().masked_fill(pad, float("-inf")), tgt_is_causal=True)
    loss = nn.functional.cross_entropy(head(out).reshape(-1, 20), tgt[:, 1:].reshape(-1), ignore_index=0)
    opt.zero_grad(); loss.backward(); nn.utils.clip_grad_norm_(params, 1.0); opt.step(); noam.step()
    print(loss.item().hex())
ctc = nn.CTCLoss(); logp = head(out).transpose(0, 1).log_softmax(-1); print(ctc(logp, tgt[:, 1:3], torch.full((8,), 5), torch.full((8,), 2)).item().hex())
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in params)).hexdigest())
