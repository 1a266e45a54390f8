import tempfile

import accelerate
import torch
import transformers
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

from tests.instrument.frameworks.scenario import FAULTY_BATCH, report

transformers.utils.logging.set_verbosity_error()
STEPS, SIZE, LENGTH, WIDTH = 8, 4, 6, 16


class Items(torch.utils.data.Dataset):
    def __init__(self, poisoned):
        generator = torch.Generator().manual_seed(1)
        self.x = torch.randn(STEPS * SIZE, LENGTH, WIDTH, generator=generator)
        self.y = torch.randint(0, 32, (STEPS * SIZE, LENGTH), generator=generator)
        if poisoned:
            self.x[FAULTY_BATCH * SIZE, 0, 0] = float("nan")

    def __len__(self):
        return len(self.x)

    def __getitem__(self, index):
        return {"inputs_embeds": self.x[index], "labels": self.y[index]}


class InOrder(Trainer):
    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def train(clip, poisoned):
    transformers.set_seed(0)
    config = GPT2Config(vocab_size=32, n_positions=16, n_embd=WIDTH, n_layer=1, n_head=2, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config)
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            output_dir=folder,
            max_steps=STEPS,
            per_device_train_batch_size=SIZE,
            learning_rate=1e-2,
            max_grad_norm=clip if clip is not None else 0.0,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            logging_strategy="no",
            dataloader_pin_memory=False,
        )
        InOrder(model=model, args=arguments, train_dataset=Items(poisoned)).train()
    return model


if __name__ == "__main__":
    report(train, {"transformers": transformers.__version__, "accelerate": accelerate.__version__})
