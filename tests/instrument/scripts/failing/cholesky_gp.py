import torch
torch.manual_seed(0)
x = torch.linspace(0, 1, 30)[:, None]; y = torch.sin(6 * x[:, 0])
ls = torch.nn.Parameter(torch.tensor(0.0)); opt = torch.optim.Adam([ls], lr=0.1)
for step in range(15):
    K = torch.exp(-0.5 * (x - x.T) ** 2 / ls.exp() ** 2)
    L = torch.linalg.cholesky(K)  # BIRTH
    a = torch.cholesky_solve(y[:, None], L)
    loss = 0.5 * (y[None] @ a).squeeze() + L.diagonal().log().sum()
    opt.zero_grad(); loss.backward(); opt.step()
