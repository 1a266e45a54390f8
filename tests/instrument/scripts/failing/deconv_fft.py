import numpy as np
import torch

torch.manual_seed(0)
N = 64


def box_kernel(width):
    k = torch.zeros(N)
    k[:width] = 1.0 / width
    return k


def naive_deconvolution(blurred, kernel):
    H = torch.fft.rfft(kernel)
    return torch.fft.irfft(torch.fft.rfft(blurred) / H, n=N)  # BIRTH


clean = torch.cumsum(torch.randn(100, N), 1) * 0.1
k = box_kernel(4)
blurred = torch.fft.irfft(torch.fft.rfft(clean) * torch.fft.rfft(k), n=N)

init = naive_deconvolution(blurred, k)
net = torch.nn.Sequential(torch.nn.Linear(N, 64), torch.nn.ReLU(), torch.nn.Linear(64, N))
opt = torch.optim.Adam(net.parameters(), lr=1e-3)
for e in range(10):
    order = np.random.permutation(100)
    for i in range(0, 100, 20):
        j = torch.from_numpy(order[i:i + 20])
        loss = torch.nn.functional.mse_loss(init[j] + net(init[j]), clean[j])
        opt.zero_grad(); loss.backward(); opt.step()
    print("epoch", e, "mse", loss.item())
