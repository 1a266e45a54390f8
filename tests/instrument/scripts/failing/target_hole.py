import torch, torch.nn.functional as F
torch.manual_seed(0)
x = torch.randn(64, 3); readings = (x @ torch.tensor([1.0, -2.0, 0.5])).tolist(); readings[40] = float("nan")  # BIRTH
y = torch.tensor(readings)
w, b = torch.zeros(3, requires_grad=True), torch.zeros((), requires_grad=True); opt = torch.optim.SGD([w, b], lr=0.1)
for step in range(8):
    for i in range(0, 64, 16):
        loss = F.mse_loss(x[i:i + 16] @ w + b, y[i:i + 16])
        opt.zero_grad(); loss.backward(); opt.step()
