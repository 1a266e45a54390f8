"""The loop of a training run: steps, records, checkpoints, and leaving in good order."""

from __future__ import annotations

import signal
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from latent_drift._version import __version__
from latent_drift.config import StabilityConfig
from latent_drift.errors import UsageError
from latent_drift.models.optimizer_step import OptimizerStep
from latent_drift.models.train_ode import PRECISIONS
from latent_drift.training import optimizers
from latent_drift.training.batches import Batches
from latent_drift.training.checkpoint import Checkpoint, load_model, write_checkpoint
from latent_drift.training.data import fingerprint, open_data
from latent_drift.training.interruption import Interruption, interruptible
from latent_drift.training.metrics import MetricsFile
from latent_drift.training.random_state import random_state, restore_random_state, seed_everything
from latent_drift.training.ranks import Ranks
from latent_drift.training.run_folder import METRICS, RUN, RunFolder, write_whole
from latent_drift.training.schedules import Schedule
from latent_drift.training.settings import RunSettings
from latent_drift.training.tasks import TASKS

Record = dict[str, Any]
"""What metrics.jsonl says of a step: step, loss, the model's parts of it, grad_norm (before clipping), lr, clipped, skipped."""


@dataclass(frozen=True, slots=True)
class RunEnd:
    """How a run was left.

    Attributes:
        step: steps that were taken.
        finished: whether these are all.
        signal: that asked it to stop, or None.
        unsaved: what kept the last state out of the folder, or None.
        rescued: the folder in the system's temporary directory that has it instead, or None.
    """

    step: int
    finished: bool
    signal: signal.Signals | None = None
    unsaved: OSError | None = None
    rescued: Path | None = None


class TrainingRun:
    """A run in its folder, new or continued.

    The batch of a step, and with it every number of a run, follows from the settings, the config and the step; what a
    process adds to that is in the checkpoint. So a run that was left and continued is, on the same machine and number of
    threads, bit for bit the run that was not left.

    Under several processes each takes its rows of the same batch and draws its rows of the same noise. Gradients are
    averaged by DistributedDataParallel and the statistic of the latents is that of all rows, so that the losses are those
    of one process up to the rounding of sums. Steps are skipped by all or none, and only the first process writes.

    Args:
        settings: of the run.
        config: of the numerics.
        device: to train on.
        ranks: this process among others.
        checkpoint: to continue from.
        on_step: called with each record, on the first rank.
        on_note: called with what the user should know, on the first rank.

    Raises:
        UsageError: a name, argument, specification or size that cannot be used.
    """

    def __init__(
        self,
        settings: RunSettings,
        config: StabilityConfig,
        device: torch.device,
        ranks: Ranks | None = None,
        *,
        checkpoint: Checkpoint | None = None,
        on_step: Callable[[Record], None] = lambda record: None,
        on_note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.settings, self.config, self.device = settings, config, device
        self.ranks = ranks or Ranks()
        self._on_step, self._on_note = on_step, on_note
        self._task = TASKS[settings.kind]
        data = open_data(settings.kind, settings.data, settings.seed)
        self._fingerprint = fingerprint(data)
        self._batches = Batches(data, settings.batch_size, settings.seed, self.ranks.rank, self.ranks.count)
        seed_everything(settings.seed)
        self.model = self._task.build(settings.sizes, config).to(device)
        self.optimizer = optimizers.build(settings.optimizer, settings.optimizer_arguments, self.model.parameters())
        self.schedule = Schedule(settings.scheduler, settings.scheduler_arguments, self.optimizer, settings.steps)
        self._trained: nn.Module = self.model
        self._optimizer_step = OptimizerStep(self.model, self.optimizer, config, self._scaler(), update_ratio=self._task.update_ratio)
        self.step = 0
        if checkpoint is not None:
            self._continue_from(checkpoint)
        self._kept = self.step if checkpoint is not None else -1
        self._folder: RunFolder | None = None
        self._metrics: MetricsFile | None = None
        self._metrics_wait = False

    def _scaler(self) -> torch.amp.GradScaler | None:
        if self.settings.precision != "float16":
            return None
        amp = self.config.amp
        return torch.amp.GradScaler(
            self.device.type,
            init_scale=amp.init_scale,
            growth_factor=amp.growth_factor,
            backoff_factor=amp.backoff_factor,
            growth_interval=amp.growth_interval,
        )

    def _continue_from(self, checkpoint: Checkpoint) -> None:
        content = checkpoint.content
        if content["data"] != self._fingerprint:
            raise UsageError(
                f"--data {self.settings.data}: has changed since the run in {checkpoint.path.parent} began; put it back, or start a new run"
            )
        load_model(checkpoint, self.model)
        try:
            self.optimizer.load_state_dict(content["optimizer"])
            self.schedule.load_state_dict(content["schedule"])
            self._optimizer_step.load_state_dict(content["optimizer_step"])
        except (KeyError, ValueError, RuntimeError) as error:
            raise UsageError(f"{checkpoint.path}: its optimizer's state does not fit {self.settings.optimizer}: {error}") from error
        restore_random_state(content["random"])
        self.step = checkpoint.step

    def train(self, folder: RunFolder | None, stop_after: int | None = None) -> RunEnd:
        """Take the steps that are left, or `stop_after` of them; Ctrl-C, SIGTERM and SIGHUP end it after the step under way.

        Args:
            folder: for metrics and checkpoints; None writes none, and other ranks than the first never do.

        Raises:
            UsageError: the folder's metrics are not those of the checkpoint, or a new run's folder has no room for it.
            GiveUpError: too many steps in a row were not finite. The last checkpoint stays.
            NumericalError: the config says to raise, or a weight is not finite where a checkpoint was due.
        """
        last = self.settings.steps if stop_after is None else min(self.settings.steps, self.step + stop_after)
        unsaved: OSError | None = None
        if folder is not None and self.ranks.is_first:
            self._folder, self._metrics = folder, MetricsFile(folder.metrics, self.step)
        try:
            with interruptible() as interruption:
                self._trained = self._shared().train()
                self._describe()
                if self._kept < 0:
                    self.ranks.from_first(self._keep_first)
                elif self.step > self._kept:
                    unsaved = self._keep()
                stopped = False
                while self.step < last and not stopped:
                    stopped = self._take_step(interruption)
                    if self.step % self.settings.checkpoint_every == 0 or self.step == last or stopped:
                        unsaved = self._keep()
                return self._ended(interruption.signal if stopped else None, unsaved)
        finally:
            self._trained = self.model
            if self._metrics is not None:
                self._metrics.close()

    def _shared(self) -> nn.Module:
        """The model as it is trained: under several processes, averaging gradients over them.

        The wrapper lives for the training only. It holds the process group, whose threads would otherwise outlive `destroy_process_group`
        and run into the end of the interpreter: one that lets go of a tensor then cannot have the lock it needs for that, and aborts the process.
        """
        if self.ranks.count == 1:
            return self.model
        own = [self.device.index] if self.device.type == "cuda" else None
        return DistributedDataParallel(self.model, device_ids=own, forward_sync_buffers=False)

    def _take_step(self, interruption: Interruption) -> bool:
        """One step; whether some process was asked to stop."""
        kind, dtype = self.device.type, PRECISIONS[self.settings.precision]
        batch = tuple(tensor.to(self.device) for tensor in self._batches.at(self.step))
        rate = self.schedule.rate
        with torch.autocast(kind, dtype=dtype) if dtype is not None else nullcontext():
            loss, stats = self._task.loss(self._trained, batch, self.step, self.settings.loss_weights)
        outcome = self._optimizer_step(loss)
        own = [outcome.loss, *(float(stats[name]) for name in self._task.parts), float(interruption.requested)]
        value, *parts, asked = self.ranks.mean(own, self.device)
        if not outcome.skipped:
            self.schedule.advance(value)
        record: Record = {"step": self.step, "loss": value, **dict(zip(self._task.parts, parts, strict=True))}
        record |= {"grad_norm": outcome.norm, "lr": rate, "clipped": outcome.clipped, "skipped": outcome.skipped}
        self.step += 1
        if self._metrics is not None:
            self._note_metrics(self._metrics.append(record))
        if self.ranks.is_first:
            if outcome.skipped:
                self._on_note(f"step {record['step']} skipped: loss {value}, gradient norm {outcome.norm}")
            self._on_step(record)
        return asked > 0

    def _note_metrics(self, error: OSError | None) -> None:
        if (error is not None) != self._metrics_wait:
            self._metrics_wait = error is not None
            if error is not None:
                self._on_note(f"{METRICS}: {_reason(error)}; its records are held in memory and written when there is room")
            else:
                self._on_note(f"{METRICS}: written again, with all that was held")

    def _describe(self) -> None:
        """run.json: what this run is, for people and programs."""
        if self._folder is None:
            return
        try:
            self._folder.write_json(RUN, self._description())
        except OSError as error:
            self._on_note(f"{RUN}: {_reason(error)}")

    def _description(self) -> dict[str, Any]:
        return {
            "settings": self.settings.document(),
            "config": self.config.record(),
            "parameters": sum(p.numel() for p in self.model.parameters()),
            "device": str(self.device),
            "processes": self.ranks.count,
            "versions": {"latent_drift": __version__, "torch": str(torch.__version__)},
        }

    def _keep_first(self) -> None:
        """The checkpoint of a new run before its first step: a run that could never be saved is refused while nothing is lost by it."""
        if self._folder is None:
            return
        try:
            self._write(self._folder)
        except OSError as error:
            self._folder.discard()
            raise UsageError(
                f"{self._folder.path}: {_reason(error)}, and a run needs room for two checkpoints. Make room, or give another --out."
            ) from error
        self._kept = self.step

    def _keep(self) -> OSError | None:
        """Write a checkpoint, metrics first; what prevented it, or None. Only the first process does anything."""
        if self._folder is None or self._metrics is None:
            return None
        error = self._metrics.sync()
        if not (self._folder.path / RUN).exists():  # somebody emptied the folder, or there was no room at first
            self._describe()
        try:
            self._write(self._folder)
        except OSError as failure:
            self._on_note(f"checkpoint of step {self.step}: {_reason(failure)}; the one of step {self._kept} stays, training goes on")
            return failure
        self._kept = self.step
        return error

    def _write(self, folder: RunFolder) -> None:
        write_checkpoint(
            folder.checkpoint,
            self.model,
            self.optimizer,
            settings=self.settings,
            config=self.config,
            step=self.step,
            optimizer_step=self._optimizer_step.state_dict(),
            schedule=self.schedule.state_dict(),
            random=random_state(),
            data=self._fingerprint,
        )

    def _ended(self, asked: signal.Signals | None, unsaved: OSError | None) -> RunEnd:
        finished = self.step >= self.settings.steps
        return RunEnd(self.step, finished, asked, unsaved, None if unsaved is None else self._rescue())

    def _rescue(self) -> Path | None:
        """The whole run in a folder of the system's temporary directory, from which it can be continued; None where that fails too."""
        if self._metrics is None:
            return None
        try:
            folder = RunFolder(Path(tempfile.mkdtemp(prefix="latent-drift-run-")))
            write_whole(folder.metrics, self._metrics.content())
            folder.write_json(RUN, self._description())
            self._write(folder)
        except OSError:
            return None
        return folder.path


def _reason(error: OSError) -> str:
    return f"cannot be written ({error.strerror or error})"
