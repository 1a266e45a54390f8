# recurrent nets over packed sequences, CTC with blanks and padding, masked means, a forward algorithm in logarithms with impossible transitions
import torch, torch.nn as nn, torch.nn.functional as F
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence, pad_sequence
torch.manual_seed(46)
gru = nn.GRU(6, 12, num_layers=2, bidirectional=True, batch_first=True); lstm = nn.LSTM(24, 12, batch_first=True, proj_size=7); head = nn.Linear(7, 5)
params = [*gru.parameters(), *lstm.parameters(), *head.parameters()]; opt = torch.optim.Adamax(params, lr=5e-3)
lengths = torch.tensor([9, 7, 4]); x = pad_sequence([torch.randn(n, 6) for n in lengths], batch_first=True); labels = torch.tensor([1, 2, 3, 1, 4, 2, 3]); label_lengths = torch.tensor([3, 2, 2])
forbidden = torch.full((5, 5), -float("inf")).triu(3) + torch.zeros(5, 5)
for step in range(10):
    packed, _ = gru(pack_padded_sequence(x, lengths, batch_first=True))
    out, _ = lstm(packed)
    padded, n = pad_packed_sequence(out, batch_first=True)
    logp = F.log_softmax(head(padded), -1)
    ctc = F.ctc_loss(logp.transpose(0, 1), labels, n, label_lengths, blank=0)
    alpha = torch.full((3, 5), -float("inf")); alpha[:, 0] = 0.0
    for t in range(4):
        alpha = torch.logsumexp(alpha[:, :, None] + forbidden.T, 1).clamp(max=50.0) + logp[:, t]
    mask = torch.arange(9)[None] < lengths[:, None]
    entropy = -(logp.exp() * logp).sum(-1).masked_fill(~mask, 0).sum() / mask.sum()
    loss = ctc - 0.01 * torch.logsumexp(alpha, 1).mean() + 0.01 * entropy
    opt.zero_grad(); loss.backward(); nn.utils.clip_grad_norm_(params, 5.0); opt.step()
    print(loss.item().hex(), ctc.item().hex(), alpha.detach().isneginf().sum().item(), entropy.item().hex())
