import hashlib, torch
torch.manual_seed(10)
A = torch.randn(60, 6, dtype=torch.double); w = torch.randn(6, dtype=torch.double); y = torch.sigmoid(A @ w)
p = torch.zeros(6, dtype=torch.double, requires_grad=True)
opt = torch.optim.LBFGS([p], lr=1, max_iter=10, history_size=5, line_search_fn="strong_wolfe")
def closure():
    opt.zero_grad()
    loss = torch.nn.functional.binary_cross_entropy_with_logits(A @ p, y) + 1e-4 * p.square().sum()
    loss.backward()
    print(loss.item().hex())
    return loss
for _ in range(3): opt.step(closure)
xy = torch.tensor([-1.2, 1.0], requires_grad=True)
opt = torch.optim.LBFGS([xy], lr=0.1, max_iter=15)
def rosenbrock():
    opt.zero_grad(); f = (1 - xy[0]) ** 2 + 100 * (xy[1] - xy[0] ** 2) ** 2; f.backward(); print(f.item().hex()); return f
for _ in range(4): opt.step(rosenbrock)
print(hashlib.sha256(p.detach().numpy().tobytes() + xy.detach().numpy().tobytes()).hexdigest())
