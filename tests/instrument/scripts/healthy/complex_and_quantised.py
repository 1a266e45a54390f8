# complex weights, spectra, fake quantisation, real quantised tensors, integer arithmetic
import torch, torch.nn as nn, hashlib
torch.manual_seed(42)
w = nn.Parameter(torch.randn(8, 8, dtype=torch.cfloat) * 0.2); b = nn.Parameter(torch.zeros(8, dtype=torch.cfloat))
head = nn.Linear(8, 2); opt = torch.optim.Adam([w, b, *head.parameters()], lr=5e-3)
x = torch.randn(24, 8); target = torch.randn(24, 2)
scale, zero = torch.tensor(0.1), torch.tensor(0, dtype=torch.int32)
for step in range(12):
    spectrum = torch.fft.fft(x) / 8 ** 0.5
    z = spectrum @ w + b
    z = z / (z.abs().square().mean() + 1).sqrt() + torch.exp(1j * z.angle().detach()) * 0.1
    h = torch.log1p(z.abs()) * torch.sign(z.real)
    h = torch.fake_quantize_per_tensor_affine(h, scale, zero, -128, 127)
    loss = (head(h) - target).pow(2).mean() + z.norm() * 1e-4
    opt.zero_grad(); loss.backward(); opt.step()
    q = torch.quantize_per_tensor(h.detach(), 0.1, 0, torch.qint8)
    counts = (torch.arange(10) // 3) % 2 + torch.arange(10).pow(2)
    print(loss.item().hex(), q.int_repr().sum().item(), q.dequantize().mean().item().hex(), counts.tolist(), torch.exp(torch.tensor([1, 2])).tolist())
print(hashlib.sha256(w.detach().numpy().tobytes()).hexdigest())
