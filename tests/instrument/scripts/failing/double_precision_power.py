import torch
w = torch.nn.Parameter(torch.tensor([200.0], dtype=torch.float64)); opt = torch.optim.SGD([w], lr=1.0)
for step in range(10):
    y = w ** 150  # BIRTH
    loss = (y * 1e-300).sum()
    opt.zero_grad(); loss.backward(); opt.step()
