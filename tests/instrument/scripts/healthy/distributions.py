import hashlib, torch, torch.distributions as D
torch.manual_seed(9)
loc = torch.zeros(3, requires_grad=True); raw = torch.zeros(3, requires_grad=True); tril = torch.eye(3).requires_grad_(); conc = torch.ones(4, requires_grad=True)
opt = torch.optim.Adam([loc, raw, tril, conc], lr=0.02)
data = torch.randn(128, 3) @ torch.tensor([[1.0, 0.2, 0.0], [0.0, 0.7, 0.1], [0.0, 0.0, 0.5]]) + 1.0
counts = torch.multinomial(torch.tensor([0.1, 0.2, 0.3, 0.4]), 200, replacement=True)
for step in range(25):
    scale = torch.nn.functional.softplus(raw)
    nll = -D.Independent(D.Normal(loc, scale), 1).log_prob(data).mean()
    mvn = -D.MultivariateNormal(loc, scale_tril=torch.tril(tril) + 1e-3 * torch.eye(3)).log_prob(data).mean()
    cat = -D.Categorical(logits=conc).log_prob(counts).mean()
    kl = D.kl_divergence(D.Normal(loc, scale), D.Normal(0.0, 2.0)).sum() + D.kl_divergence(D.Dirichlet(conc.exp()), D.Dirichlet(torch.ones(4)))
    gamma = -D.Gamma(scale, scale + 0.5).log_prob(data.abs() + 0.1).mean()
    sample = D.LogNormal(loc, scale * 0.1).rsample().mean() + D.Beta(scale + 1, 2.0).rsample().mean()
    mix = -D.MixtureSameFamily(D.Categorical(logits=conc[:3]), D.Normal(loc, scale)).log_prob(data[:, 0]).mean()
    tanh = D.TransformedDistribution(D.Normal(loc, scale), [D.transforms.TanhTransform(cache_size=1)])
    act = tanh.rsample(); squashed = tanh.log_prob(act).mean()
    student = -D.StudentT(4.0, loc, scale).log_prob(data).mean() - D.Laplace(loc, scale).log_prob(data).mean() - D.Poisson(scale).log_prob(torch.tensor([0.0, 1.0, 2.0])).mean()
    bern = D.Bernoulli(logits=loc).entropy().mean() + D.Categorical(logits=conc).entropy()
    loss = nll + mvn + cat + 0.1 * kl + gamma + 0.1 * sample + mix + 0.01 * squashed + student - 0.1 * bern
    opt.zero_grad(); loss.backward(); opt.step()
    print(loss.item().hex())
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in (loc, raw, tril, conc))).hexdigest())
