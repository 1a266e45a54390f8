import torch
torch.manual_seed(0)
NEG = float("-inf")
allowed = torch.tensor([[1, 1, 0], [0, 1, 1], [0, 0, 1.0]])
A, B = torch.randn(3, 3, requires_grad=True), torch.randn(3, 5, requires_grad=True)
seen = torch.randint(0, 5, (20, 9)); opt = torch.optim.Adam([A, B], lr=0.05)
def log_sum_exp(x, dim):
    m = x.max(dim, keepdim=True).values
    return m.squeeze(dim) + torch.log(torch.exp(x - m).sum(dim))  # BIRTH
for step in range(6):
    log_a, log_b = torch.log_softmax(A.masked_fill(allowed == 0, NEG), 1), torch.log_softmax(B, 1)
    alpha = torch.tensor([0.0, NEG, NEG]) + log_b[:, seen[:, 0]].t()
    for t in range(1, 9):
        alpha = log_sum_exp(alpha.unsqueeze(2) + log_a, 1) + log_b[:, seen[:, t]].t()
    loss = -log_sum_exp(alpha, 1).mean()
    opt.zero_grad(); loss.backward(); opt.step()
