"""What a finished run is worth: figures on held-out data, and, of a latent ODE, sequences to look at."""

from __future__ import annotations

from typing import Any, Final

from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.sequences import PROMPT, T
from latent_drift.training.data import SYNTHETIC, open_data
from latent_drift.training.evaluation import ITEMS, evaluate
from latent_drift.training.run import TrainingRun
from latent_drift.training.run_folder import RESULT, SAMPLES, RunFolder, write_whole
from latent_drift.training.samples import draw_sequences
from latent_drift.training.settings import HELD_OUT

_SHOWN: Final = 16  # sequences in samples.txt


def held_out_figures(run: TrainingRun) -> dict[str, Any]:
    """The figures of `evaluate` on synthetic data that the run has not seen."""
    kind = run.settings.kind
    return evaluate(kind, run.model, open_data(kind, SYNTHETIC, run.settings.seed + HELD_OUT, ITEMS[kind]), run.device)


def write_results(run: TrainingRun, figures: dict[str, Any], folder: RunFolder) -> None:
    """Write result.json and, for a latent ODE, samples.txt.

    Raises:
        OSError: one cannot be written.
    """
    folder.write_json(RESULT, {"step": run.step, "data": SYNTHETIC, **figures})
    if isinstance(run.model, DeterministicLatentODE):
        drawn = draw_sequences(run.model, _SHOWN, PROMPT + T, 0)
        write_whole(folder.path / SAMPLES, "\n".join([*drawn, ""]).encode())
