import torch
torch.manual_seed(0)
W = torch.nn.Parameter(torch.randn(4, 3)); opt = torch.optim.SGD([W], lr=0.1)
x = torch.randn(16, 4) * 40; y = torch.randint(3, (16,))
for step in range(30):
    e = torch.exp(x @ W)  # BIRTH
    p = e / e.sum(1, keepdim=True)
    loss = -(p[torch.arange(16), y] + 1e-8).log().mean()
    opt.zero_grad(); loss.backward(); opt.step()
