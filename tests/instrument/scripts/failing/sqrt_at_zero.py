import torch
w = torch.nn.Parameter(torch.tensor([1.0, -1.0, 0.5]))
opt = torch.optim.SGD([w], lr=0.1)
x = torch.tensor([[1., 0., 0.], [0., 0., 0.], [1., 1., 0.]])
for step in range(30):
    dist = torch.sqrt(((x * w) ** 2).sum(-1))  # BIRTH
    loss = (dist - 1.0).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
