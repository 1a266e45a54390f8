import torch
torch.manual_seed(0)
l = torch.nn.Parameter(torch.randn(5)); opt = torch.optim.SGD([l], lr=0.5)
q = torch.tensor([0.5, 0.5, 0.0, 0.0, 0.0])
for step in range(20):
    p = l.softmax(0)
    loss = (q * (q / p).log()).sum()  # BIRTH
    opt.zero_grad(); loss.backward(); opt.step()
