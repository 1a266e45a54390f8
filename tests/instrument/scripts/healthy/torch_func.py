# functional training: per-sample gradients, jacobians, hessian-vector products, an inner loop differentiated through
import torch, torch.nn as nn
from torch.func import functional_call, grad, grad_and_value, hessian, jacrev, jvp, vmap
torch.manual_seed(43)
net = nn.Sequential(nn.Linear(4, 12), nn.Softplus(), nn.Linear(12, 1)); params = dict(net.named_parameters())
opt = torch.optim.SGD(net.parameters(), lr=0.05); x = torch.rand(16, 4) + 0.5; y = torch.log(x).sum(1, keepdim=True)
def loss_of(p, x, y): return (functional_call(net, p, (x[None],)) - y[None]).square().mean()
def energy(x): return torch.log(x).sum() + torch.sqrt(x).prod() + torch.softmax(x, 0).max() + (1.0 / x).sum()
for step in range(10):
    live = {k: v.detach() for k, v in params.items()}
    per_sample, values = vmap(grad_and_value(loss_of), in_dims=(None, 0, 0))(live, x, y)
    norms = torch.stack([g.flatten(1).norm(dim=1) for g in per_sample.values()]).norm(dim=0)
    factor = (1.0 / (norms + 1e-6)).clamp(max=1.0)
    for k, p in params.items():
        p.grad = torch.einsum("n,n...->...", factor, per_sample[k]) / len(x)
    opt.step()
    j = vmap(jacrev(energy))(x); h = vmap(hessian(energy))(x[:3]); _, t = jvp(energy, (x[0],), (torch.ones(4),))
    fast = {k: v - 0.01 * g for (k, v), g in zip(params.items(), torch.autograd.grad((functional_call(net, params, (x,)) - y).square().mean(), list(params.values()), create_graph=True))}
    outer = (functional_call(net, fast, (x.flip(0),)) - y.flip(0)).square().mean()
    meta = torch.autograd.grad(outer, list(params.values()))
    print(values.mean().item().hex(), j.sum().item().hex(), h.sum().item().hex(), t.item().hex(), sum(m.sum() for m in meta).item().hex())
