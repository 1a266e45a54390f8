import torch
torch.manual_seed(0)
w = torch.nn.Parameter(torch.ones(4)); opt = torch.optim.Adam([w], lr=0.01)
sched = torch.optim.lr_scheduler.LambdaLR(opt, lambda t: float('inf') if t == 12 else 1.0)
for step in range(30):
    loss = (w ** 2).sum()
    opt.zero_grad(); loss.backward()
    opt.step()  # BIRTH
    sched.step()
