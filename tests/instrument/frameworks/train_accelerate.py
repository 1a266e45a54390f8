import accelerate
import torch
from accelerate import Accelerator
from torch import nn

from tests.instrument.frameworks.scenario import FAULTY_BATCH, batches, poison, report


def train(clip, poisoned):
    torch.manual_seed(0)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    model = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    data = [(poison(x) if poisoned and i == FAULTY_BATCH else x, y) for i, (x, y) in enumerate(batches(12))]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)
    model, optimizer, loader, schedule = accelerator.prepare(model, optimizer, torch.utils.data.DataLoader(data, batch_size=None), schedule)
    for x, y in loader:
        with accelerator.accumulate(model):
            # large at first, so that half of an accumulated gradient is above any threshold already
            accelerator.backward(30 * nn.functional.mse_loss(model(x), y))
            if clip is not None and accelerator.sync_gradients:
                accelerator.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
    return accelerator.unwrap_model(model)


if __name__ == "__main__":
    report(train, {"accelerate": accelerate.__version__})
