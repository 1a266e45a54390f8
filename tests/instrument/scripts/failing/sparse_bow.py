# sparse bag-of-words, rows scaled to unit length before the first layer
import torch
import torch.nn as nn

torch.manual_seed(0)
N, V = 80, 500
rows, cols, vals = [], [], []
for i in range(N):
    k = int(torch.poisson(torch.tensor(3.0)))          # number of known words
    c = torch.randperm(V)[:k]
    rows += [i] * k
    cols += c.tolist()
    vals += torch.rand(k).tolist()
X = torch.sparse_coo_tensor([rows, cols], vals, (N, V)).coalesce()
y = torch.randint(0, 2, (N,))


def inverse_length(X):
    sq = torch.sparse_coo_tensor(X.indices(), X.values() ** 2, X.shape)
    length = torch.sparse.sum(sq, 1).to_dense().sqrt()
    return 1.0 / length  # BIRTH


scale = inverse_length(X)
W = nn.Parameter(torch.randn(V, 16) * 0.05)
head = nn.Linear(16, 2)
opt = torch.optim.SGD([W, *head.parameters()], lr=0.5)
for ep in range(15):
    h = scale[:, None] * torch.sparse.mm(X, W)
    loss = nn.functional.cross_entropy(head(torch.relu(h)), y)
    opt.zero_grad()
    loss.backward()
    opt.step()
    print("epoch", ep, "loss", loss.item())
