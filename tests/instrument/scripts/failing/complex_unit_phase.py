import torch
torch.manual_seed(0)
field = torch.randn(16, 16, dtype=torch.cfloat)
amplitude, phase = torch.randn(16, 16, requires_grad=True), torch.randn(16, 16, requires_grad=True)
opt = torch.optim.Adam([amplitude, phase], lr=0.05)
for step in range(8):
    z = torch.polar(torch.relu(amplitude), phase)
    unit = z / z.abs()  # BIRTH
    loss = ((unit * field.abs() - field).abs() ** 2).mean()
    opt.zero_grad(); loss.backward(); opt.step()
