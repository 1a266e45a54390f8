import torch
s = torch.nn.Parameter(torch.tensor([200.0, 1.0])); opt = torch.optim.SGD([s], lr=0.1)
for step in range(10):
    scale = torch.exp(s).clamp(max=1e4)  # BIRTH
    loss = (scale * 1e-3).sum()
    opt.zero_grad(); loss.backward(); opt.step()
