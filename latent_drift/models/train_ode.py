"""Training of the latent ODE model."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from latent_drift.config import StabilityConfig, load
from latent_drift.errors import UsageError
from latent_drift.models import alphabet
from latent_drift.models.batches import endless, loader_of
from latent_drift.models.float16_products import float16_products
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.optimizer_step import OptimizerStep
from latent_drift.models.sample_ode import sample_sequences_ode
from latent_drift.models.sizes import require_size

logger = logging.getLogger(__name__)

LEARNING_RATE: Final = 1e-3
WEIGHT_DECAY: Final = 1e-5
WARMUP_START: Final = 0.0005
WARMUP_STEPS: Final = 10_000
UPDATE_RATIO: Final = 0.03
"""Bound of an update relative to the parameter. At the learning rate 1e-3 it changes the loss after 200 steps by 0.001;
at 0.1, where AdamW alone ends at 1,100 nats, training reaches 0.45 (test_train_ode.py)."""
SAMPLE_EVERY: Final = 100
SAMPLES: Final = 8

PRECISIONS: Final[dict[str, torch.dtype | None]] = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""Names of the precisions of a forward pass: none, or the dtype of autocast."""


@dataclass(frozen=True, slots=True)
class OdeStep:
    """One step of training. Losses are before the step; `norm` is the gradient norm before clipping."""

    step: int
    loss: float
    recon: float
    latent_ep: float
    ode_reg: float
    latent_weight: float
    norm: float
    skipped: bool


@dataclass(frozen=True, slots=True)
class OdeSamples:
    """Sequences drawn after a step: from one shared z_0, and from one each, both long (n, L) on the CPU."""

    step: int
    shared: Tensor
    own: Tensor


@dataclass(slots=True)
class OdeTraining:
    """What a training run did.

    Attributes:
        steps: one record a step, in order.
        samples: one a hundred steps.
        optimizer: with its state, to go on from.
    """

    optimizer: torch.optim.Optimizer
    steps: list[OdeStep] = field(default_factory=list)
    samples: list[OdeSamples] = field(default_factory=list)

    @property
    def loss(self) -> float:
        """The loss of the last step (NaN before the first)."""
        return self.steps[-1].loss if self.steps else float("nan")

    @property
    def stats(self) -> dict[str, float]:
        """recon, latent_ep and ode_reg of the last step."""
        last = self.steps[-1] if self.steps else None
        return {} if last is None else {"recon": last.recon, "latent_ep": last.latent_ep, "ode_reg": last.ode_reg}

    @property
    def skipped(self) -> int:
        """How many steps were skipped because something was not finite."""
        return sum(record.skipped for record in self.steps)


def latent_weight_at(step: int, final: float) -> float:
    """The weight of the normality term at `step` (from 0): linear from 0.0005 to `final` over 10,000 steps."""
    start = min(WARMUP_START, final)
    return start + (final - start) * min(1.0, step / WARMUP_STEPS)


def train_ode(
    model: DeterministicLatentODE | DistributedDataParallel,
    dataloader: Iterable[Any] | Dataset[Any],
    n_iter: int,
    device: torch.device | str | None = None,
    loss_weights: Sequence[float] = (1.0, 0.05, 1.0),
    *,
    batch_size: int | None = None,
    lr: float = LEARNING_RATE,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
    precision: str = "float32",
    first_step: int = 0,
    sample_every: int = SAMPLE_EVERY,
    on_step: Callable[[OdeStep], None] | None = None,
    config: StabilityConfig | None = None,
    legacy_compat: bool = False,
) -> OdeTraining:
    """Train `model` for `n_iter` steps and say what happened.

    AdamW with weight decay 1e-5; the weight of the normality term is warmed up linearly from 0.0005 to
    `loss_weights[1]` over 10,000 steps. Steps that are not finite are skipped and gradients clipped, both as
    `config.gradient` says, and no update exceeds 3 % of a parameter's norm. Progress is logged (INFO) with samples
    every `sample_every` steps; drawing them does not disturb the run's random numbers.

    Args:
        model: moved to `device` and put into training mode; a DistributedDataParallel around one stays where it is.
        dataloader: batches of tokens (B, L), or tuples that start with them; walked again when it ends. A data set is loaded in
            shuffled batches.
        n_iter: steps to take, at least 0.
        device: None for where the model is.
        loss_weights: of reconstruction, normality (at the end of its warm-up) and ODE matching.
        batch_size: for a data set, 32 by default.
        lr: learning rate of the AdamW that is built when `optimizer` is None.
        optimizer: one built over the model's parameters, in place of AdamW.
        scheduler: a learning-rate scheduler of `optimizer`; stepped after each step that was taken.
        precision: of the forward pass: "float32" (the weights' own), or autocast to "bfloat16" or "float16", the
            latter with a gradient scaler.
        first_step: number of the first step, where a run is continued.
        sample_every: steps between samples; 0 draws none.
        on_step: called with the record of every step.
        config: None loads the default.
        legacy_compat: neither clip nor skip nor bound, as published.

    Raises:
        UsageError: an argument outside what is said above, or a loader without a batch.
        GiveUpError: too many skipped steps in a row.

    *Numerics*: "float16" on a processor without float16 arithmetic forms its products in float32 from rounded operands
    (`float16_products`): the values of float16 units, in a sixth of the time of torch's scalar fallback.
    """
    require_size(n_iter, "n_iter", "train_ode", at_least=0)
    require_size(first_step, "first_step", "train_ode", at_least=0)
    require_size(sample_every, "sample_every", "train_ode", at_least=0)
    if precision not in PRECISIONS:
        raise UsageError(f"train_ode: precision must be one of {', '.join(PRECISIONS)}; got {precision!r}")
    if len(loss_weights) < 3:
        raise UsageError(f"train_ode: loss_weights are (reconstruction, normality, ODE matching); got {tuple(loss_weights)!r}")
    inner = model.module if isinstance(model, DistributedDataParallel) else model
    if device is None:
        device = next(inner.parameters()).device
    elif inner is model:
        model.to(device)
    config = _without_intervention() if legacy_compat else config or inner.config
    kind = torch.device(device).type
    amp = config.amp
    scaler = None
    if precision == "float16":
        scaler = torch.amp.GradScaler(
            kind,
            init_scale=amp.init_scale,
            growth_factor=amp.growth_factor,
            backoff_factor=amp.backoff_factor,
            growth_interval=amp.growth_interval,
        )
    step = OptimizerStep(model, optimizer or _adamw(lr), config, scaler, update_ratio=None if legacy_compat else UPDATE_RATIO)
    training = OdeTraining(step.optimizer)
    model.train()
    batches = endless(loader_of(dataloader, batch_size, shuffle=True), "train_ode")
    half = PRECISIONS[precision]
    for number in range(first_step, first_step + n_iter):
        tokens = _tokens(next(batches)).to(device)
        weight = latent_weight_at(number, loss_weights[1])
        with torch.autocast(kind, dtype=half, enabled=half is not None), float16_products(kind, half):
            loss, stats = model(tokens, (loss_weights[0], weight, loss_weights[2]))
        outcome = step(loss)
        if scheduler is not None and not outcome.skipped:
            scheduler.step()
        parts = {name: float(value) for name, value in stats.items()}
        record = OdeStep(number, outcome.loss, **parts, latent_weight=weight, norm=outcome.norm, skipped=outcome.skipped)
        training.steps.append(record)
        if outcome.skipped:
            logger.warning("step %d skipped: loss %s, gradient norm %s", number, outcome.loss, outcome.norm)
        if on_step is not None:
            on_step(record)
        if sample_every and (number + 1) % sample_every == 0:
            training.samples.append(_drawn(inner, number, tokens.shape[1]))
            _report(record, training.samples[-1], inner.vocab_size)
    return training


def _adamw(lr: float) -> Callable[[list[Tensor]], torch.optim.Optimizer]:
    return lambda parameters: torch.optim.AdamW(parameters, lr=lr, weight_decay=WEIGHT_DECAY)


def _without_intervention() -> StabilityConfig:
    return load(gradient={"clip": {"kind": "none"}, "nonfinite": "record"})


def _tokens(batch: Any) -> Tensor:
    """Tokens (B, L) of what a loader gave: a batch or a tuple that starts with it; a single sequence where it does no batching."""
    tokens: Tensor = batch[0] if isinstance(batch, (tuple, list)) else batch
    return tokens.unsqueeze(0) if tokens.dim() == 1 else tokens


def _drawn(model: DeterministicLatentODE, step: int, seq_len: int) -> OdeSamples:
    devices = [p.device for p in model.parameters() if p.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices=devices):
        shared, own = sample_sequences_ode(model, seq_len, SAMPLES, "cpu")
    return OdeSamples(step, shared, own)


def _report(record: OdeStep, samples: OdeSamples, vocab_size: int) -> None:
    logger.info(
        "step %d loss %.4f recon %.4f latent_ep %.4f ode_reg %.4f grad_norm %.3f",
        record.step,
        record.loss,
        record.recon,
        record.latent_ep,
        record.ode_reg,
        record.norm,
    )
    if vocab_size == alphabet.vocab_size and logger.isEnabledFor(logging.INFO):
        for name, tokens in (("shared z0", samples.shared), ("own z0", samples.own)):
            for row in tokens:
                logger.info("sample (%s) %s", name, alphabet.decode(row))
