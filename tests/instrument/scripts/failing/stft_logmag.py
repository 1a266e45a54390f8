import torch, torch.nn as nn
torch.manual_seed(0)
gain = nn.Parameter(torch.ones(1)); opt = torch.optim.Adam([gain], lr=1e-2)
for step in range(8):
    wave = torch.sin(torch.linspace(0, 60, 256)); wave[:128] = 0
    spec = torch.stft(gain * wave, 32, window=torch.hann_window(32), return_complex=True)
    mag = torch.sqrt(spec.real ** 2 + spec.imag ** 2)
    logmag = torch.log(mag)  # BIRTH
    loss = logmag.pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
