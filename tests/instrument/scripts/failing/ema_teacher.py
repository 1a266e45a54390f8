import torch, torch.nn as nn, copy
torch.manual_seed(0)
student = nn.Linear(4, 4); teacher = copy.deepcopy(student); opt = torch.optim.SGD(student.parameters(), lr=0.1)
for step in range(25):
    x = torch.randn(8, 4) * (1e25 if step == 7 else 1.0)
    with torch.no_grad(): t = teacher(x)
    loss = ((student(x) - t) ** 2).mean() + student(x).pow(2).mean()  # BIRTH
    opt.zero_grad(); loss.backward(); opt.step()
    with torch.no_grad():
        for a, b in zip(teacher.parameters(), student.parameters()):
            a.mul_(0.9).add_(b, alpha=0.1)
