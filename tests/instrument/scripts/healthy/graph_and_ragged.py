# sparse matrices, scatter softmax started at -inf, segment means of empty segments that are masked, ragged nested tensors, sparse gradients
import torch, torch.nn as nn
torch.manual_seed(49)
nodes, edges = 12, 40
source, target = torch.randint(0, nodes, (edges,)), torch.randint(0, nodes - 1, (edges,))
adjacency = torch.sparse_coo_tensor(torch.stack([target, source]), torch.rand(edges), (nodes, nodes)).coalesce()
embed = nn.Embedding(nodes, 8, sparse=True); lin = nn.Linear(8, 8); score = nn.Linear(16, 1); head = nn.Linear(8, 3)
dense = [*lin.parameters(), *score.parameters(), *head.parameters()]; opts = [torch.optim.SparseAdam(embed.parameters(), lr=1e-2), torch.optim.AdamW(dense, lr=1e-2)]
y = torch.randint(0, 3, (nodes,))
for step in range(10):
    h = embed(torch.arange(nodes)); h = h + torch.sparse.mm(adjacency, lin(h))
    e = nn.functional.leaky_relu(score(torch.cat([h[source], h[target]], -1))).squeeze(-1)
    top = torch.full((nodes,), -float("inf")).scatter_reduce(0, target, e.detach(), "amax")
    weight = torch.exp(e - top[target]); total = torch.zeros(nodes).index_add(0, target, weight)
    attended = torch.zeros(nodes, 8).index_add(0, target, h[source] * (weight / total[target].clamp(min=1e-9))[:, None])
    degree = torch.bincount(target, minlength=nodes); mean = torch.where(degree[:, None] > 0, attended / degree.clamp(min=1)[:, None], attended)
    loss = nn.functional.cross_entropy(head(h + attended + mean), y)
    for o in opts: o.zero_grad()
    loss.backward()
    for o in opts: o.step()
    ragged = torch.nested.nested_tensor([h[:3].detach(), h[3:8].detach()], layout=torch.jagged)
    print(loss.item().hex(), top.isneginf().sum().item(), torch.softmax(ragged, -1).values().sum().item().hex(), adjacency.to_dense().sum().item().hex(), embed.weight.grad.is_sparse)
