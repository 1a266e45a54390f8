import torch
from torch.func import grad, vmap
torch.manual_seed(0)
weight = torch.randn(4)
inputs = torch.randn(12, 4)
inputs[7] = 0.0
def distance(w, x):
    length = ((w * x) ** 2).sum() ** 0.5  # BIRTH
    return (length - 1.0) ** 2
for step in range(10):
    each = vmap(grad(distance), (None, 0))(weight, inputs)
    weight = weight - 0.1 * each.mean(0)
    loss = vmap(distance, (None, 0))(weight, inputs).mean()
