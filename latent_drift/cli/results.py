"""What `train` and `evaluate` say of a finished run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from latent_drift.training.run import TrainingRun
    from latent_drift.training.run_folder import RunFolder


def finish_run(run: TrainingRun, folder: RunFolder, *, evaluate: bool, plots: bool | None) -> Iterator[str]:
    """Evaluate and plot a finished run; yields a line on each thing that was done or could not be."""
    from latent_drift.errors import MissingExtraError
    from latent_drift.training.data import SYNTHETIC
    from latent_drift.training.plots import plot_run
    from latent_drift.training.results import held_out_figures, write_results
    from latent_drift.training.run_folder import RESULT

    if evaluate:
        figures = held_out_figures(run)
        yield f"held-out {SYNTHETIC} data: {summary(run.settings.kind, figures)}"
        try:
            write_results(run, figures, folder)
        except OSError as error:
            yield f"{RESULT}: cannot be written ({error.strerror})"
    if plots is not False:
        try:
            paths = plot_run(folder.path, run.model, run.settings, run.device)
        except MissingExtraError as error:
            yield f"no plots: {error}"
        except OSError as error:
            yield f"plots: cannot be written ({error.strerror})"
        else:
            yield "plots: " + ", ".join(str(path) for path in paths)


def summary(kind: str, figures: dict[str, Any]) -> str:
    """The figures of an evaluation in a line."""
    if kind == "raccoon":
        recall = "  ".join(f"{name} {'-' if value is None else format(value, '.4f')}" for name, value in figures["recall"].items())
        return (
            f"accuracy {figures['accuracy']:.4f} on {figures['items']} messages, cross-entropy {figures['cross_entropy']:.4f} nats; recall: {recall}"
        )
    return (
        f"reconstruction {figures['recon']:.4f} nats a token on {figures['items']} sequences, ODE matching {figures['ode_reg']:.4f}, "
        f"normality {figures['latent_ep']:.4f}; {figures['well_formed']:.2f} of {figures['drawn']} drawn sequences are well formed"
    )


def confusion_table(confusion: dict[str, dict[str, int]]) -> str:
    """Counts by true class (rows) and predicted class (columns)."""
    names = list(confusion)
    width = max(len(name) for name in names) + 2
    head = "true \\ predicted".ljust(18) + "".join(name.rjust(width) for name in names)
    return "\n".join([head, *(name.ljust(18) + "".join(str(count).rjust(width) for count in row.values()) for name, row in confusion.items())])
