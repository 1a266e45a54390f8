"""Figures of a run: loss, gradient norm and learning rate over its steps, and what became of the latents (extra `plots`)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn

from latent_drift.errors import MissingExtraError
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.log_alphabet import LOG_CATEGORIES
from latent_drift.models.raccoon import FLOW_TIME, SDE_TIMES, RaccoonLogClassifier
from latent_drift.solvers.sde import solve_sde
from latent_drift.training.data import SYNTHETIC, open_data
from latent_drift.training.metrics import read_metrics
from latent_drift.training.run_folder import METRICS, PLOTS
from latent_drift.training.settings import HELD_OUT, RunSettings
from latent_drift.training.tasks import TASKS

COLOURS: Final = ("#b3261e", "#d9822b", "#2f6db3", "#5b8c5a", "#7a5195", "#8a8a8a")
_SHOWN_SEQUENCES: Final = 4
_SHOWN_MESSAGES: Final = 240
_SHOWN_PATHS: Final = 6
_SDE_POINTS: Final = 51
_WINDOW_SHARE: Final = 50
"""The running mean is over this part of the steps."""
_FEW: Final = 40
"""Up to so many values each is marked: a line through one or two would be missed."""


def plot_run(folder: Path, model: nn.Module, settings: RunSettings, device: torch.device) -> list[Path]:
    """Write loss.png, gradient_norm.png and latents.png into the plots of a run's folder.

    Returns:
        Their paths.

    Raises:
        MissingExtraError: matplotlib is not installed.
        UsageError: the folder has no metrics.
        OSError: they cannot be written.
    """
    figure_class()
    records = read_metrics(folder / METRICS)
    target = folder / PLOTS
    target.mkdir(exist_ok=True)
    figures = {
        "loss.png": loss_figure(records, TASKS[settings.kind].parts),
        "gradient_norm.png": gradient_figure(records),
        "latents.png": latent_figure(model, settings, device),
    }
    for name, figure in figures.items():
        figure.savefig(target / name, dpi=120)
    return [target / name for name in figures]


def figure_class() -> Any:
    """matplotlib's Figure, which draws without a display.

    Raises:
        MissingExtraError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plotting a run", "matplotlib", "plots") from error
    return Figure


def loss_figure(records: Sequence[dict[str, Any]], parts: Sequence[str]) -> Any:
    """The loss over the steps, its running mean, and each of its parts in a panel of its own."""
    names = ["loss", *parts]
    figure = figure_class()(figsize=(8.0, 1.2 + 1.7 * len(names)), layout="constrained")
    figure.suptitle("Loss and its parts")
    for axis, name in zip(figure.subplots(len(names), 1, sharex=True, squeeze=False)[:, 0], names, strict=True):
        _curve(axis, records, name)
        _scale(axis, [record[name] for record in records], logarithmic=name != "accuracy")
    _steps(axis)
    figure.align_ylabels()
    return figure


def gradient_figure(records: Sequence[dict[str, Any]]) -> Any:
    """The gradient's norm before clipping, with the steps that were clipped or skipped, and the learning rate below."""
    figure = figure_class()(figsize=(8.0, 5.2), layout="constrained")
    figure.suptitle("Gradient norm and learning rate")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    _curve(upper, records, "grad_norm", "norm before clipping")
    _scale(upper, [record["grad_norm"] for record in records], logarithmic=True)
    clipped = sum(bool(record["clipped"]) for record in records)
    for record in records:
        if record["skipped"]:
            upper.axvline(record["step"], color=COLOURS[0], linewidth=0.8, alpha=0.6)
    skipped = sum(bool(record["skipped"]) for record in records)
    upper.set_title(f"{clipped} of {len(records)} steps clipped, {skipped} skipped{' (red)' if skipped else ''}", fontsize=9, loc="left")
    rates = [math.nan if record["lr"] is None else record["lr"] for record in records]
    lower.plot([record["step"] for record in records], rates, color="#444444", linewidth=1.2)
    lower.set_ylabel("learning rate")
    lower.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2))
    if any(record["lr"] is not None for record in records):
        lower.set_ylim(bottom=0)
    _steps(lower)
    _plain(lower)
    figure.align_ylabels()
    return figure


def _curve(axis: Any, records: Sequence[dict[str, Any]], name: str, label: str | None = None) -> None:
    """Every value, and where there are many the mean over the fiftieth of the steps around each, behind which the values fade."""
    points = [(record["step"], record[name]) for record in records if record[name] is not None]
    window = max(1, len(points) // _WINDOW_SHARE)
    faded = {"linewidth": 0.6, "alpha": 0.35} if window > 1 else {"linewidth": 1.4, "marker": "o" if len(points) <= _FEW else "", "markersize": 3}
    axis.plot([x for x, _ in points], [y for _, y in points], color=COLOURS[2], **faded)
    if window > 1:
        means = torch.tensor([y for _, y in points], dtype=torch.float64).unfold(0, window, 1).mean(1).tolist()
        axis.plot([x for x, _ in points[window // 2 :]][: len(means)], means, color=COLOURS[2], linewidth=1.6)
    axis.set_ylabel(label or name)
    _plain(axis)


def _scale(axis: Any, values: Sequence[float | None], logarithmic: bool) -> None:
    """A logarithmic axis where the values ask for one: all positive, and over a factor of five."""
    known = [value for value in values if value is not None]
    if logarithmic and known and min(known) > 0 and max(known) > 5 * min(known):
        axis.set_yscale("log")
        axis.yaxis.set_major_formatter("{x:g}")
        if max(known) < 100 * min(known):  # few powers of ten, or none: the numbers between them are what can be read
            axis.yaxis.set_minor_locator(_locators().LogLocator(subs=(2.0, 5.0)))
            axis.yaxis.set_minor_formatter("{x:g}")
        else:
            axis.yaxis.set_minor_formatter(_locators().NullFormatter())


def _locators() -> Any:
    from matplotlib import ticker

    return ticker


def _steps(axis: Any) -> None:
    axis.set_xlabel("step")
    axis.xaxis.set_major_locator(_locators().MaxNLocator(integer=True, steps=(1, 2, 5, 10), min_n_ticks=1))


def _plain(axis: Any) -> None:
    axis.grid(color="#e0e0e0", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right"):
        axis.spines[side].set_visible(False)


def latent_figure(model: nn.Module, settings: RunSettings, device: torch.device) -> Any:
    """Latent trajectories of held-out items in the plane of their two main directions.

    ode: the encodings z_t of some sequences from the first token to the last, and what the vector field forecasts from each.
    raccoon: messages from their encoding along the SDE without noise, through the flow, coloured by class.
    """
    figure_class()  # before anything is computed
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            if isinstance(model, DeterministicLatentODE):
                return _sequences_figure(model, settings, device)
            assert isinstance(model, RaccoonLogClassifier)
            return _messages_figure(model, settings, device)
    finally:
        model.train(was_training)


def _sequences_figure(model: DeterministicLatentODE, settings: RunSettings, device: torch.device) -> Any:
    data = open_data("ode", SYNTHETIC, settings.seed + HELD_OUT, 64)
    (tokens,) = data.batch(range(64))
    z = model.encode(tokens.to(device))
    _, forecast = model.ode_matching_loss(z)
    plane = _Plane(z.flatten(0, 1))
    figure = figure_class()(figsize=(11.0, 5.4), layout="constrained")
    figure.suptitle("Latent trajectories of held-out sequences")
    left, right = figure.subplots(1, 2)
    left.scatter(*plane.of(z.flatten(0, 1)), s=2, color="#d0d0d0", linewidths=0, rasterized=True)
    for colour, path in zip(COLOURS, z[:_SHOWN_SEQUENCES], strict=False):
        x, y = plane.of(path)
        left.plot(x, y, color=colour, linewidth=0.8, alpha=0.8)
        left.scatter(x[:1], y[:1], s=28, color=colour, edgecolors="black", linewidths=0.6, zorder=3)
    left.set_title(f"{_SHOWN_SEQUENCES} of 64 sequences, from the first token (dot)", fontsize=9, loc="left")
    left.set_xlabel(plane.label(0))
    left.set_ylabel(plane.label(1))
    times = torch.arange(z.shape[1])
    for colour, path, predicted in zip(COLOURS, z[:_SHOWN_SEQUENCES], forecast, strict=False):
        right.plot(times, plane.of(path)[0], color=colour, linewidth=1.0)
        right.scatter(times[1:], plane.of(predicted)[0], s=6, color=colour, marker="x", linewidths=0.8)
    right.set_title("first direction over the tokens (line), as forecast one token before (x)", fontsize=9, loc="left")
    right.set_xlabel("token")
    right.set_ylabel(plane.label(0))
    for axis in (left, right):
        _plain(axis)
    return figure


def _messages_figure(model: RaccoonLogClassifier, settings: RunSettings, device: torch.device) -> Any:
    data = open_data("raccoon", SYNTHETIC, settings.seed + HELD_OUT, _SHOWN_MESSAGES)
    tokens, labels = data.batch(range(_SHOWN_MESSAGES))
    mean, _ = model.encode(tokens.to(device))
    silent = torch.zeros(len(SDE_TIMES) - 1, *mean.shape, dtype=mean.dtype, device=device)
    before = solve_sde(model.dynamics, mean, SDE_TIMES, noise=silent)[:, -1]
    end, _ = model.flow(before, before.new_full((1, 1), FLOW_TIME))
    figure = figure_class()(figsize=(11.0, 5.6), layout="constrained")
    figure.suptitle("Latents of held-out messages")
    left, right = figure.subplots(1, 2)
    plane = _Plane(torch.cat([mean, end]))
    for index, name in enumerate(LOG_CATEGORIES):
        own = labels.to(device) == index
        starts, ends = plane.of(mean[own]), plane.of(end[own])
        for x, y in zip(zip(starts[0], ends[0], strict=True), zip(starts[1], ends[1], strict=True), strict=True):
            left.plot(x, y, color=COLOURS[index], linewidth=0.4, alpha=0.35)
        left.scatter(*starts, s=14, facecolors="white", edgecolors=COLOURS[index], linewidths=0.7, zorder=2)
        left.scatter(*ends, s=14, color=COLOURS[index], label=name, linewidths=0, zorder=3)
    left.set_title("from the encoding (hollow) along SDE and flow to where it is classified", fontsize=9, loc="left")
    left.set_xlabel(plane.label(0))
    left.set_ylabel(plane.label(1))
    times = torch.linspace(SDE_TIMES[0], SDE_TIMES[-1], _SDE_POINTS, dtype=mean.dtype, device=device)
    generator = torch.Generator().manual_seed(settings.seed)
    noise = torch.randn(_SDE_POINTS - 1, *mean.shape, generator=generator).to(mean)
    moved = solve_sde(model.dynamics, mean, times, noise=noise) - mean.unsqueeze(1)
    along = _Plane(moved[:, -1], centred=False)
    for index in range(len(LOG_CATEGORIES)):
        for row in moved[labels.to(device) == index][:_SHOWN_PATHS]:
            right.plot(times.cpu(), along.of(row)[0], color=COLOURS[index], linewidth=0.7, alpha=0.8)
    right.set_title(f"the SDE with its noise: way from the encoding, {_SHOWN_PATHS} messages a class", fontsize=9, loc="left")
    right.set_xlabel("time")
    right.set_ylabel("displacement, " + along.label(0))
    for axis in (left, right):
        _plain(axis)
    handles, names = left.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside lower center", ncols=len(LOG_CATEGORIES), frameon=False)
    return figure


class _Plane:
    """The two main directions of points (N, D), and where others lie on them."""

    def __init__(self, points: Tensor, centred: bool = True) -> None:
        points = points.detach().double().cpu()
        self._centre = points.mean(0) if centred else torch.zeros_like(points[0])
        _, sizes, directions = torch.linalg.svd(points - self._centre, full_matrices=False)
        rows = torch.zeros(2, points.shape[1], dtype=torch.float64)
        rows[: min(2, len(directions))] = directions[:2]
        self._directions = rows
        total = float(sizes.square().sum())
        self._shares = [float(size**2) / total if total > 0 else 0.0 for size in [*sizes[:2].tolist(), 0.0, 0.0][:2]]

    def of(self, points: Tensor) -> tuple[Any, Any]:
        """x and y of points (M, D)."""
        placed = (points.detach().double().cpu() - self._centre) @ self._directions.mT
        return placed[:, 0].numpy(), placed[:, 1].numpy()

    def label(self, index: int) -> str:
        """What an axis shows."""
        share = self._shares[index]
        return f"direction {index + 1} ({share:.0%} of the variance)" if math.isfinite(share) else f"direction {index + 1}"
