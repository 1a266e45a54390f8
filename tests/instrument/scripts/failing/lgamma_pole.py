import torch
torch.manual_seed(0)
a = torch.nn.Parameter(torch.tensor([3.0, 0.5])); opt = torch.optim.SGD([a], lr=0.5)
data = torch.rand(20, 2)
for step in range(40):
    ll = (a - 1) * data.log() - torch.lgamma(a) + a * 0.5  # BIRTH
    loss = ll.mean()
    opt.zero_grad(); loss.backward(); opt.step()
    with torch.no_grad(): a.clamp_(min=0)
