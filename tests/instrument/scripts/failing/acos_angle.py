import torch, torch.nn.functional as F
torch.manual_seed(0)
a = torch.nn.Parameter(torch.tensor([[1., 0., 0.], [0., 1., 0.]]))
b = torch.tensor([[1., 0., 0.], [0., 0., 1.]])
opt = torch.optim.SGD([a], lr=0.1)
for step in range(20):
    cos = (F.normalize(a, dim=1) * b).sum(1)
    ang = torch.acos(cos)  # BIRTH
    loss = ang.pow(2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
