import torch
w = torch.nn.Parameter(torch.tensor([2.0, 3.0]))
opt = torch.optim.LBFGS([w], lr=1.0, max_iter=5)
def closure():
    opt.zero_grad()
    l = (torch.log(w - 1.0) ** 2).sum() + (w ** 2).sum()  # BIRTH
    l.backward()
    return l
for step in range(15):
    loss = opt.step(closure)
