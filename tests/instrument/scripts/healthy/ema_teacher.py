import copy, hashlib, torch, torch.nn as nn, torch.nn.functional as F
torch.manual_seed(15)
student = nn.Sequential(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 8)); teacher = copy.deepcopy(student).requires_grad_(False)
swa = torch.optim.swa_utils.AveragedModel(student, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.9))
opt = torch.optim.SGD(student.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4); warm = torch.optim.lr_scheduler.LinearLR(opt, 0.1, total_iters=5)
x = torch.randn(64, 12); center = torch.zeros(8)
for step in range(25):
    s = student(x + 0.1 * torch.randn_like(x)); t = teacher(x + 0.1 * torch.randn_like(x))
    target = F.softmax((t - center) / 0.04, dim=-1)                     # DINO's sharpening
    distill = F.kl_div(F.log_softmax(s / 0.1, dim=-1), target, reduction="batchmean")
    loss = distill + -(target * F.log_softmax(s, -1)).sum(-1).mean()
    opt.zero_grad(); loss.backward(); opt.step(); warm.step(); swa.update_parameters(student)
    with torch.no_grad():
        for a, b in zip(teacher.parameters(), student.parameters()): a.lerp_(b, 0.05)
        center = 0.9 * center + 0.1 * t.mean(0)
    print(loss.item().hex())
print(hashlib.sha256(b"".join(p.detach().numpy().tobytes() for m in (student, teacher, swa) for p in m.parameters())).hexdigest())
