"""`latent-drift stability-test`: the five categories on the package's own models or a user's."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from latent_drift.cli.devices import device_of
from latent_drift.errors import UsageError

if TYPE_CHECKING:
    from latent_drift.stability.tester import Subject


def stability_test(
    model: Annotated[str, typer.Option(help="ode, raccoon, or package.module:factory (returns (model, batch) or (model, batch, loss_fn)).")],
    device: Annotated[str, typer.Option(help="cpu, cuda or mps.")] = "cpu",
    steps: Annotated[int, typer.Option(min=1, help="Training steps of the last category.")] = 20,
    seed: Annotated[int, typer.Option(help="Seed of everything random.")] = 0,
    json_file: Annotated[
        str | None, typer.Option("--json", help="Write the report as JSON to this file; - for standard output instead of the table.")
    ] = None,
) -> None:
    """Test a model's numerics.

    Initialisation, forward, gradient flow, mixed precision, multi-step training.

    Exit status: 0 all passed, 1 something failed, 2 the test could not run.
    """
    from latent_drift.stability.tester import StabilityTester

    subject = _subject(model)
    report = StabilityTester(subject, device=device_of(device), steps=steps, seed=seed).run()
    if json_file == "-":
        typer.echo(report.json())
    else:
        typer.echo(report.table())
        if json_file is not None:
            Path(json_file).write_text(report.json() + "\n", encoding="utf-8")
    raise typer.Exit(report.exit_status)


def _subject(name: str) -> Subject:
    """The model to test.

    Raises:
        UsageError: no such model, module or factory, or the factory returns something else.
    """
    from importlib import import_module

    from latent_drift.stability.tester import Subject

    if name == "ode":
        return _ode()
    if name == "raccoon":
        return _raccoon()
    module_name, _, factory_name = name.partition(":")
    if not factory_name:
        raise UsageError(f"--model must be ode, raccoon or package.module:factory; got {name!r}")
    if "" not in sys.path:
        sys.path.insert(0, "")  # the user's own module, as `python -m` finds it
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        raise UsageError(f"--model {name}: no module named {error.name!r}; run from the directory that holds it, or install it") from error
    factory = getattr(module, factory_name, None)
    if not callable(factory):
        raise UsageError(f"--model {name}: {module_name} has no callable {factory_name!r}")
    return Subject.from_factory(factory(), name)


def _ode() -> Subject:
    import torch

    from latent_drift import DeterministicLatentODE, SyntheticTargetDataset, vocab_size
    from latent_drift.stability.tester import Subject

    def batch(rows: int) -> Any:
        data = SyntheticTargetDataset(max(rows, 1))
        return torch.stack([data[i] for i in range(max(rows, 1))])[:rows]

    return Subject(lambda: DeterministicLatentODE(vocab_size, latent_size=16, hidden_size=32, embed_size=16, num_slices=16), batch, name="ode")


def _raccoon() -> Subject:
    import torch

    from latent_drift import NUM_LOG_CLASSES, LogDataset, RaccoonLogClassifier, log_vocab_size
    from latent_drift.stability.tester import Subject

    def batch(rows: int) -> Any:
        data = LogDataset(max(rows, 1))
        items = [data[i] for i in range(max(rows, 1))]
        return torch.stack([tokens for tokens, _ in items])[:rows], torch.as_tensor([int(label) for _, label in items])[:rows]

    return Subject(lambda: RaccoonLogClassifier(log_vocab_size, NUM_LOG_CLASSES), batch, name="raccoon")
