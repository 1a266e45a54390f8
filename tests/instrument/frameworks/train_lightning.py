import logging
import warnings

import lightning
import torch
from torch import nn

from tests.instrument.frameworks.scenario import FAULTY_BATCH, batches, poison, report

logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", module="lightning.*")


class Regression(lightning.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 1))

    def training_step(self, batch, index):
        x, y = batch
        return 30 * nn.functional.mse_loss(self.net(x), y)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        return {"optimizer": optimizer, "lr_scheduler": torch.optim.lr_scheduler.LambdaLR(optimizer, lambda epoch: 1.0)}


def train(clip, poisoned):
    lightning.seed_everything(0, verbose=False)
    model = Regression()
    data = [(poison(x) if poisoned and i == FAULTY_BATCH else x, y) for i, (x, y) in enumerate(batches())]
    trainer = lightning.Trainer(
        accelerator="cpu",
        max_epochs=1,
        gradient_clip_val=clip,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, torch.utils.data.DataLoader(data, batch_size=None))
    return model


if __name__ == "__main__":
    report(train, {"lightning": lightning.__version__})
