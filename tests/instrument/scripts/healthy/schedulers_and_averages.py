# five schedulers, stochastic weight averaging with its batch norm pass, an exponential average, warm restarts, a plateau
import copy, torch, torch.nn as nn, hashlib
from torch.optim.swa_utils import SWALR, AveragedModel, get_ema_multi_avg_fn, update_bn
from torch.optim import lr_scheduler as S
torch.manual_seed(45)
x = torch.randn(64, 5); y = (x[:, :1] * 2 - x[:, 1:2]).tanh()
for make in (lambda o: S.OneCycleLR(o, 0.1, total_steps=14), lambda o: S.CosineAnnealingWarmRestarts(o, 3), lambda o: S.SequentialLR(o, [S.LinearLR(o, 0.1, total_iters=4), S.ExponentialLR(o, 0.9)], [4]), lambda o: S.CyclicLR(o, 0.001, 0.1, 3, cycle_momentum=False), lambda o: S.ReduceLROnPlateau(o, patience=1)):
    net = nn.Sequential(nn.Linear(5, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1)); opt = torch.optim.SGD(net.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    sched = make(opt); swa = AveragedModel(net); ema = AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.9)); swa_lr = SWALR(opt, swa_lr=0.01)
    best, kept = float("inf"), None
    for step in range(14):
        loss = nn.functional.huber_loss(net(x), y)
        opt.zero_grad(set_to_none=step % 2 == 0); loss.backward(); nn.utils.clip_grad_value_(net.parameters(), 0.5); opt.step(); ema.update_parameters(net)
        if step >= 10: swa.update_parameters(net); swa_lr.step()
        elif isinstance(sched, S.ReduceLROnPlateau): sched.step(loss.detach())
        else: sched.step()
        if loss.item() < best: best, kept = loss.item(), copy.deepcopy(net.state_dict())
    update_bn([x], swa)
    print(loss.item().hex(), best.hex(), opt.param_groups[0]["lr"], swa(x).sum().item().hex(), ema(x).sum().item().hex())
    net.load_state_dict(kept)
print(hashlib.sha256(net[0].weight.detach().numpy().tobytes()).hexdigest()); print(sorted(opt.state_dict()["state"][0]))
