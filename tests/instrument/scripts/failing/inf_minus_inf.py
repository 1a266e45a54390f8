import torch
torch.manual_seed(0)
a = torch.nn.Parameter(torch.tensor([1.0, 2.0])); opt = torch.optim.SGD([a], lr=0.1)
for step in range(12):
    big = a * 1e25
    cube = big * big  # BIRTH
    loss = (cube - cube + a).pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
