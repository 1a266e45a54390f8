import torch, torch.nn as nn, torch.nn.functional as F
class Quantiser(nn.Module):
    def __init__(self, k=32, d=4):
        super().__init__()
        self.register_buffer("code", torch.randn(k, d) * 5); self.register_buffer("n", torch.zeros(k)); self.register_buffer("s", torch.zeros(k, d))
    def forward(self, z):
        index = torch.cdist(z, self.code).argmin(1)
        q = self.code[index]
        with torch.no_grad():
            one = F.one_hot(index, self.code.size(0)).float()
            self.n.mul_(0.5).add_(one.sum(0), alpha=0.5); self.s.mul_(0.5).add_(one.t() @ z, alpha=0.5)
            self.code.copy_(self.s / self.n.unsqueeze(1))  # BIRTH
        return z + (q - z).detach(), F.mse_loss(z, q.detach())
torch.manual_seed(0)
encoder, vq, decoder = nn.Linear(6, 4), Quantiser(), nn.Linear(4, 6)
opt = torch.optim.Adam([*encoder.parameters(), *decoder.parameters()], lr=1e-2); x = torch.randn(50, 6)
for step in range(8):
    q, commitment = vq(encoder(x))
    loss = F.mse_loss(decoder(q), x) + commitment
    opt.zero_grad(); loss.backward(); opt.step()
