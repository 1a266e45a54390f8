import hashlib, torch
torch.manual_seed(21)
w1 = torch.randn(10, 32) * 0.3; w2 = torch.randn(32, 3) * 0.3; x = torch.randn(64, 10); y = torch.randint(0, 3, (64,))
w1.requires_grad = True; w2.requires_grad = True; lr = 0.1; velocity = [torch.zeros_like(w1), torch.zeros_like(w2)]
def swish(t, sigmoid=torch.sigmoid): return t * sigmoid(t)
class Norm(torch.autograd.Function):                    # a hand-written backward that calls torch's functions
    @staticmethod
    def forward(ctx, v):
        n = torch.sqrt((v * v).sum(1, keepdim=True) + 1e-6); ctx.save_for_backward(v, n); return v / n
    @staticmethod
    def backward(ctx, g):
        v, n = ctx.saved_tensors
        return g / n - v * (g * v).sum(1, keepdim=True) / n ** 3
for step in range(25):
    h = Norm.apply(swish(x @ w1)); logits = h @ w2 * 5
    p = torch.exp(logits - logits.max(1, keepdim=True)[0]); p = p / p.sum(1, keepdim=True)
    loss = -torch.log(p[torch.arange(64), y]).mean() + 1e-3 * (w1.norm() + w2.pow(2).sum() ** 0.5)
    loss.backward()
    with torch.no_grad():
        for v, w in zip(velocity, (w1, w2)):
            v.mul_(0.9).add_(w.grad); w -= lr * v; w.grad.zero_()
    w2.data.clamp_(-3, 3); w1.data = w1.data * 0.999
    print(loss.item().hex())
print(hashlib.sha256(w1.detach().numpy().tobytes() + w2.detach().numpy().tobytes()).hexdigest())
