"""`latent-drift train`: a run of one of the two models, into a folder."""

from __future__ import annotations

import shlex
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_drift.errors import NumericalError, UsageError

if TYPE_CHECKING:
    from latent_drift.config import StabilityConfig
    from latent_drift.training.checkpoint import Checkpoint
    from latent_drift.training.ranks import Ranks
    from latent_drift.training.run import RunEnd, TrainingRun
    from latent_drift.training.run_folder import RunFolder
    from latent_drift.training.settings import GivenSettings, RunSettings

EPILOG = """\b
Ctrl-C finishes the step, writes a checkpoint and says how to go on.
Several processes share the batch, and give the same losses:
  torchrun --nproc-per-node N -m latent_drift train MODEL ...
Exit status: 0 done; 2 refused, or not saved; 130 left by Ctrl-C, 143 by SIGTERM."""


class Model(StrEnum):
    """What can be trained."""

    ode = "ode"
    raccoon = "raccoon"


def train(
    model: Annotated[Model, typer.Argument(metavar="MODEL", help="ode: the latent ODE over characters. raccoon: the classifier of log lines.")],
    steps: Annotated[
        int | None,
        typer.Option(help="Optimizer steps of the whole run. With --resume, more of them extend it. [default: ode 3000, raccoon 1000]"),
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Results folder. [default: the next free runs/MODEL-N]")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run in --out, bit for bit; its settings are kept.")] = False,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:N or mps.")] = "cpu",
    precision: Annotated[
        str | None, typer.Option(help="float32; or autocast to bfloat16 or float16, the latter with a loss scale. [default: float32]")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Items a step, of all processes together. [default: ode 16, raccoon 32]")] = None,
    data: Annotated[
        str | None,
        typer.Option(
            metavar="SPEC",
            help="synthetic; synthetic:samples=N,seed=N (raccoon: drift=N too); or a file: for raccoon lines of CLASS, tab, message, "
            "or .jsonl with class and text; for ode one sequence a line. [default: synthetic]",
        ),
    ] = None,
    optimizer: Annotated[str | None, typer.Option(metavar="NAME", help="Any of torch.optim and torch-optimizer. [default: AdamW]")] = None,
    opt: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Argument of the optimizer: lr=3e-4, betas=(0.9,0.99), amsgrad=True. May be repeated."),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="constant, warmup-cosine, or one of torch.optim.lr_scheduler that numbers can build. [default: ode constant, raccoon warmup-cosine]",
        ),
    ] = None,
    sched: Annotated[list[str] | None, typer.Option(metavar="KEY=VALUE", help="Argument of the schedule: step_size=500. May be repeated.")] = None,
    loss_weights: Annotated[
        str | None,
        typer.Option(
            metavar="A,B,C",
            help="ode: reconstruction, normality, ODE matching. raccoon: class, KL, normality. [default: ode 1,0.05,1, raccoon 1,0.1,0.01]",
        ),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=N",
            help="Size of the model. ode: latent_size=64, hidden_size=128, embed_size=64, num_slices=64. "
            "raccoon: latent_dim=32, hidden_dim=64, embed_dim=32. May be repeated.",
        ),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of weights, data and noise. [default: 0]")] = None,
    config: Annotated[
        str | None,
        typer.Option(metavar="PIN", help="Stability config: a version, a specifier such as '~=1.0', or a file; what the project says if left out."),
    ] = None,
    change_config: Annotated[
        bool, typer.Option("--change-config", help="With --resume: go on under --config though the run began under another.")
    ] = False,
    checkpoint_every: Annotated[int | None, typer.Option(metavar="STEPS", help="Steps between checkpoints. [default: 200]")] = None,
    stop_after: Annotated[
        int | None, typer.Option(metavar="STEPS", min=0, help="Leave after so many steps, with a checkpoint to resume from.")
    ] = None,
    plots: Annotated[
        bool | None,
        typer.Option("--plots/--no-plots", help="Plots of loss, gradient norm and latents at the end. [default: if matplotlib is installed]"),
    ] = None,
    tensorboard: Annotated[bool, typer.Option("--tensorboard", help="Write TensorBoard events into the folder.")] = False,
    evaluate: Annotated[bool, typer.Option("--evaluate/--no-evaluate", help="Evaluate on held-out data at the end.")] = True,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress; notes and errors only.")] = False,
) -> None:
    """Train a model into a results folder.

    The folder holds run.json (what was run), metrics.jsonl (a line a step), checkpoint.pt, result.json (held-out figures) and plots.
    """
    from latent_drift.training.arguments import parse
    from latent_drift.training.settings import GivenSettings

    _require_extras(plots, tensorboard)
    given = GivenSettings(
        sizes=parse(size or [], "--size"),
        steps=steps,
        batch_size=batch_size,
        data=data,
        seed=seed,
        precision=precision,
        optimizer=optimizer,
        optimizer_arguments=parse(opt, "--opt") if opt else None,
        scheduler=scheduler,
        scheduler_arguments=parse(sched, "--sched") if sched else None,
        loss_weights=_weights(loss_weights),
        checkpoint_every=checkpoint_every,
    )
    job = _Job(
        kind=model.value,
        given=given,
        out=out,
        resume=resume,
        device=device,
        pin=config,
        change_config=change_config,
        plots=plots,
        tensorboard=tensorboard,
        evaluate=evaluate,
        quiet=quiet,
    )
    job.run(stop_after)


def _weights(text: str | None) -> tuple[float, float, float] | None:
    import math

    if text is None:
        return None
    try:
        first, second, third = (float(part) for part in text.split(","))
    except ValueError:
        raise UsageError(f"--loss-weights expects three numbers with commas, such as 1,0.1,0.01; got {text!r}") from None
    if not all(math.isfinite(weight) and weight >= 0 for weight in (first, second, third)):
        raise UsageError(f"--loss-weights must be finite and not negative; got {text!r}")
    return first, second, third


def _require_extras(plots: bool | None, tensorboard: bool) -> None:
    """Refuse what cannot be done before hours of training, not after."""
    from importlib.util import find_spec

    from latent_drift.errors import MissingExtraError

    if plots and find_spec("matplotlib") is None:
        raise MissingExtraError("--plots", "matplotlib", "plots")
    if tensorboard and find_spec("tensorboard") is None:
        raise MissingExtraError("--tensorboard", "tensorboard", "tensorboard")


@dataclass(frozen=True, slots=True)
class _Job:
    """One call of `latent-drift train`, by its options."""

    kind: str
    given: GivenSettings
    out: Path | None
    resume: bool
    device: str
    pin: str | None
    change_config: bool
    plots: bool | None
    tensorboard: bool
    evaluate: bool
    quiet: bool

    def run(self, stop_after: int | None) -> None:
        """Train, and leave with the status that says how it went."""
        from latent_drift.training.optimizers import quieten
        from latent_drift.training.ranks import process_group

        quieten()
        with process_group(self.device) as ranks:
            run, folder, end = self._train(ranks, stop_after)
        if not ranks.is_first:
            raise typer.Exit(0 if end.signal is None else 128 + end.signal)
        self._report(run, folder, end)

    def _train(self, ranks: Ranks, stop_after: int | None) -> tuple[TrainingRun, RunFolder, RunEnd]:
        from latent_drift.cli.devices import device_of
        from latent_drift.cli.progress import RunProgress
        from latent_drift.training.run import TrainingRun
        from latent_drift.training.run_folder import TENSORBOARD, RunFolder, existing_folder, new_folder
        from latent_drift.training.tasks import TASKS
        from latent_drift.training.tensorboard import TensorBoardLog

        device = device_of(self.device, ranks.local_rank)
        settings, config, checkpoint = ranks.from_first(self._continued if self.resume else self._new)
        first = 0 if checkpoint is None else checkpoint.step
        progress = RunProgress(settings.steps, first, TASKS[self.kind].headline, self.quiet)
        observers: list[Callable[[dict[str, Any]], None]] = [progress.step]

        def on_step(record: dict[str, Any]) -> None:
            for observer in tuple(observers):
                try:
                    observer(record)
                except OSError as error:
                    observers.remove(observer)
                    progress.note(f"{type(observer).__name__}: cannot be written ({error.strerror or error}); it ends here, training goes on")

        run = TrainingRun(settings, config, device, ranks, checkpoint=checkpoint, on_step=on_step, on_note=progress.note)
        folder = RunFolder(ranks.from_first(lambda: existing_folder(self.out).path if self.resume else new_folder(self.out, self.kind).path))
        if not ranks.is_first:
            return run, folder, run.train(None, stop_after)
        if not self.quiet:
            parameters = sum(p.numel() for p in run.model.parameters())
            processes = f", {ranks.count} processes" if ranks.count > 1 else ""
            progress.note(f"{self.kind}: {parameters:,} parameters on {device}{processes}, config {config.identity}")
            progress.note(f"{folder.path}: {f'continued at step {first}' if checkpoint else 'new run'}, to step {settings.steps}")
        board = TensorBoardLog(folder.path / TENSORBOARD, first) if self.tensorboard else None
        if board is not None:
            observers.append(board)
        try:
            with progress:
                return run, folder, run.train(folder, stop_after)
        except KeyboardInterrupt:
            _say(f"stopped in the middle of a step; the last checkpoint stays. {self._way_on(folder.path)}")
            raise typer.Exit(128 + signal.SIGINT) from None
        except NumericalError as error:
            raise type(error)(f"{error}. The last checkpoint and the metrics stay in {folder.path}.") from error
        finally:
            if board is not None and board in observers:
                board.close()

    def _new(self) -> tuple[RunSettings, StabilityConfig, Checkpoint | None]:
        """Settings and config of a new run."""
        from latent_drift.config import load
        from latent_drift.training.run_folder import require_free
        from latent_drift.training.tasks import TASKS

        if self.change_config:
            raise UsageError("--change-config is for --resume; a new run simply takes --config PIN")
        require_free(self.out)
        return TASKS[self.kind].settings(self.given), load(self.pin), None

    def _continued(self) -> tuple[RunSettings, StabilityConfig, Checkpoint | None]:
        """Settings and config of a run that goes on, and what to go on from."""
        from latent_drift.training.checkpoint import read_checkpoint
        from latent_drift.training.config_choice import choose
        from latent_drift.training.run_folder import existing_folder
        from latent_drift.training.tasks import TASKS

        folder = existing_folder(self.out)
        checkpoint = read_checkpoint(folder.path, self.kind)
        if checkpoint.note:
            _say(f"note: {checkpoint.note}")
        settings = TASKS[self.kind].continued(self.given, checkpoint, folder.path)
        chosen = choose(checkpoint.config, self.pin, change=self.change_config, where=str(checkpoint.path))
        if chosen.note:
            _say(f"note: {chosen.note}")
        return settings, chosen.config, checkpoint

    def _way_on(self, path: Path) -> str:
        """The command that continues a run."""
        parts = ["latent-drift", "train", self.kind, "--resume", "--out", str(path)]
        if self.device != "cpu":
            parts += ["--device", self.device]
        if self.pin is not None:  # what the project pins may be another config, which the run was not to have
            parts += ["--config", "checkpoint"]
        return f"Go on with: {shlex.join(parts)}"

    def _report(self, run: TrainingRun, folder: RunFolder, end: RunEnd) -> None:
        """What came of the run, on the first process; leaves with a status other than 0 where it was not finished in good order."""
        from latent_drift.cli.results import finish_run

        path = folder.path
        if end.unsaved is not None:
            reason = f"{path}: cannot be written ({end.unsaved.strerror or end.unsaved})"
            if end.rescued is None:
                raise UsageError(
                    f"{reason}, and neither can the temporary directory. The last whole checkpoint stays. Make room. {self._way_on(path)}"
                )
            raise UsageError(
                f"{reason}. The run, with all its {end.step} steps, is in {end.rescued}: make room and move it. {self._way_on(end.rescued)}"
            )
        if not end.finished:
            _say(f"left at step {end.step} of {run.settings.steps}; checkpoint in {path}. {self._way_on(path)}")
            if end.signal is not None:
                raise typer.Exit(128 + end.signal)
            return
        for text in finish_run(run, folder, evaluate=self.evaluate, plots=self.plots):
            _say(text)
        typer.echo(str(path))


def _say(text: str) -> None:
    try:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()
    except OSError:  # the reader has gone, or the disk is full: no reason to lose a run
        pass
