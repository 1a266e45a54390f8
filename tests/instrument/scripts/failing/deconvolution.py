import torch
signal, kernel = torch.zeros(64), torch.zeros(64)
signal[20:40] = 1; kernel[:4] = 0.25  # its spectrum has zeros
k = kernel.clone().requires_grad_()
seen = torch.fft.irfft(torch.fft.rfft(signal) * torch.fft.rfft(kernel), 64)
opt = torch.optim.SGD([k], lr=1e-3)
for step in range(8):
    H = torch.fft.rfft(k)
    H = torch.where(H.abs() < 1e-6, torch.zeros_like(H), H)
    spectrum = torch.fft.rfft(seen) / H  # BIRTH
    loss = (torch.fft.irfft(spectrum, 64) - signal).abs().mean() + 0.1 * k.abs().sum()
    opt.zero_grad(); loss.backward(); opt.step()
