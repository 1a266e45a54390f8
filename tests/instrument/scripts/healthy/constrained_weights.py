# parametrised weights (weight, spectral and orthogonal norm), decompositions of well-separated matrices, a Gaussian likelihood, early stopping at inf
import torch, torch.nn as nn
from torch.distributions import Independent, MultivariateNormal, Normal, kl_divergence
from torch.nn.utils.parametrizations import orthogonal, spectral_norm, weight_norm
torch.manual_seed(50)
net = nn.Sequential(weight_norm(nn.Linear(6, 8)), nn.ELU(), spectral_norm(nn.Linear(8, 8)), nn.GELU(), orthogonal(nn.Linear(8, 6))); low = nn.Parameter(torch.eye(6) * 0.5)
opt = torch.optim.Rprop([{"params": net.parameters()}, {"params": [low], "step_sizes": (1e-7, 1e-2)}], lr=1e-3); x = torch.randn(40, 6)
mix = torch.diag(torch.arange(1.0, 7.0)) + 0.1 * torch.randn(6, 6); y = x @ mix.T; best, patience = float("inf"), 0
for step in range(12):
    mu = net(x); scale_tril = torch.tril(low) + torch.eye(6) * 1e-2
    dist = MultivariateNormal(mu, scale_tril=torch.tril(scale_tril, -1) + torch.diag_embed(nn.functional.softplus(scale_tril.diagonal()) + 1e-3))
    nll = -dist.log_prob(y).mean(); kl = kl_divergence(Independent(Normal(mu, 1.0), 1), Independent(Normal(torch.zeros(6), 2.0), 1)).mean()
    cov = torch.cov(mu.T) + torch.diag(torch.arange(1.0, 7.0)); values, vectors = torch.linalg.eigh(cov); L = torch.linalg.cholesky(cov); sign, logdet = torch.linalg.slogdet(cov)
    loss = nll * 1e-2 + kl * 1e-3 + 1e-3 * values.log().sum() + 1e-3 * logdet + torch.cdist(mu, mu).mean() * 1e-3 + mu.std(0).mean() * 1e-3
    opt.zero_grad(); loss.backward(); opt.step()
    patience = 0 if loss.item() < best else patience + 1; best = min(best, loss.item())
    print(loss.item().hex(), best.hex(), patience, L.diagonal().sum().item().hex(), torch.linalg.svdvals(mu.detach()).sum().item().hex(), torch.linalg.cond(cov.detach()).item().hex())
