import hashlib, math, torch
torch.manual_seed(19)
x = torch.linspace(0, 3, 40, dtype=torch.double)[:, None]; y = torch.sin(3 * x[:, 0]) + 0.1 * torch.randn(40, dtype=torch.double)
ls, amp, noise = (torch.tensor(v, dtype=torch.double, requires_grad=True) for v in (0.0, 0.0, -2.0))
opt = torch.optim.Adam([ls, amp, noise], lr=0.05)
for step in range(20):
    d2 = (x - x.T) ** 2
    K = amp.exp() * torch.exp(-0.5 * d2 / ls.exp() ** 2) + (noise.exp() + 1e-6) * torch.eye(40, dtype=torch.double)
    L = torch.linalg.cholesky(K); a = torch.cholesky_solve(y[:, None], L)
    nll = 0.5 * (y[:, None] * a).sum() + L.diagonal().log().sum() + 20 * math.log(2 * math.pi)
    check = 0.5 * torch.logdet(K.detach()); mahalanobis = torch.linalg.solve_triangular(L.detach(), y[:, None], upper=False).norm()
    opt.zero_grad(); nll.backward(); opt.step()
    print(nll.item().hex(), check.item().hex(), mahalanobis.item().hex())
u, s, v = torch.linalg.svd(K.detach()); e = torch.linalg.eigvalsh(K.detach())
print(s[0].item().hex(), e[-1].item().hex(), torch.linalg.cond(K.detach()).item().hex(), hashlib.sha256(L.detach().numpy().tobytes()).hexdigest())
