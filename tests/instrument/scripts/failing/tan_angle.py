import torch, math
a = torch.nn.Parameter(torch.tensor([0.3, 1.0], dtype=torch.float64)); opt = torch.optim.SGD([a], lr=0.1)
for step in range(10):
    s = torch.atanh(a)  # BIRTH
    loss = (s - 0.1).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
