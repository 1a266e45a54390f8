import torch, torch.nn as nn
def make_trainer(net, lr):
    velocity = {}
    def make_loss(eps):
        def loss_fn(x):
            z = net(x)
            def standardise(t):
                return (t - t.mean(0)) / (t.var(0) + eps).rsqrt().reciprocal()
            z = standardise(z)
            return torch.log(z.clamp(min=0)).mul(z > 0.5).mean()  # BIRTH
        return loss_fn
    loss_fn = make_loss(1e-5)
    def step(x):
        loss = loss_fn(x)
        net.zero_grad(); loss.backward()
        for n, p in net.named_parameters():
            velocity[n] = 0.9 * velocity.get(n, 0) + p.grad
            p.data.add_(velocity[n], alpha=-lr)
        return loss
    return step
torch.manual_seed(0)
net = nn.Linear(3, 4); step = make_trainer(net, 0.01)
for i in range(10):
    loss = step(torch.randn(8, 3))
