"""Figures for people: gradient flow, activation statistics, spectra; PNG, SVG or PDF by the file's name, readable at 100 layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latent_drift.errors import MissingExtraError, UsageError

_BLUE, _ORANGE, _RED, _GREY = "#2f6db3", "#d9822b", "#b3261e", "#8a8a8a"


def _figure(rows: int, title: str, columns: int = 1) -> tuple[Any, Any]:
    """A figure tall enough for one legible line per layer, and its axes."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plotting", "matplotlib", "plots") from error
    height = min(max(2.4, 0.9 + 0.17 * rows), 60.0)
    figure = Figure(figsize=(4.5 + 3.6 * columns, height), layout="constrained")
    figure.suptitle(title, fontsize=12)
    return figure, figure.subplots(1, columns, sharey=True, squeeze=False)[0]


def _label_layers(axis: Any, names: Sequence[str]) -> None:
    """One label per layer, first on top; long names keep their end, which tells them apart."""
    axis.set_yticks(range(len(names)), [n if len(n) <= 38 else "…" + n[-37:] for n in names], fontsize=7)
    axis.set_ylim(len(names) - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.grid(axis="x", color="#e0e0e0", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _save(figure: Any, path: str | Path | None) -> Any:
    if path is not None:
        path = Path(path)
        if path.suffix.lower() not in (".png", ".svg", ".pdf"):
            raise UsageError(f"a plot is written as .png, .svg or .pdf; got {path.name!r}")
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    return figure


def _log_limits(values: Sequence[float]) -> tuple[float, float]:
    """Whole decades around the positive finite values."""
    good = [v for v in values if math.isfinite(v) and v > 0]
    if not good:
        return 1e-8, 1.0
    return 10.0 ** math.floor(math.log10(min(good)) - 0.2), 10.0 ** math.ceil(math.log10(max(good)) + 0.2)


def plot_gradient_flow(flow: Mapping[str, Mapping[str, float]], path: str | Path | None = None, title: str = "Gradient flow") -> Any:
    """Mean and largest gradient magnitude per layer on a logarithmic axis; zero and non-finite gradients are marked.

    Args:
        flow: what `analyze_gradient_flow` gives.
        path: .png, .svg or .pdf; None only returns the figure.

    Raises:
        MissingExtraError: matplotlib is not installed (extra `plots`).
        UsageError: another file type.

    >>> type(plot_gradient_flow({"0.weight": {"mean": 1e-3, "max": 1e-2}})).__name__
    'Figure'
    """
    names = list(flow)
    figure, (axis,) = _figure(len(names), title)
    low, high = _log_limits([v for row in flow.values() for v in (row["mean"], row["max"])])
    for y, name in enumerate(names):
        mean, largest = flow[name]["mean"], flow[name]["max"]
        if not (math.isfinite(mean) and math.isfinite(largest)):
            axis.axhspan(y - 0.45, y + 0.45, color=_RED, alpha=0.15, linewidth=0)
            axis.text(low * 1.3, y, "not finite", va="center", fontsize=7, color=_RED)
        elif largest == 0:
            axis.text(low * 1.3, y, "zero", va="center", fontsize=7, color=_GREY)
        else:
            axis.plot([max(mean, low), largest], [y, y], color="#b9cde4", linewidth=3, solid_capstyle="round", zorder=2)
    shown = [(y, flow[n]) for y, n in enumerate(names) if math.isfinite(flow[n]["max"]) and flow[n]["max"] > 0]
    axis.scatter([max(r["mean"], low) for _, r in shown], [y for y, _ in shown], s=14, color=_BLUE, label="mean |gradient|", zorder=3)
    axis.scatter([r["max"] for _, r in shown], [y for y, _ in shown], s=14, color=_ORANGE, label="largest |gradient|", zorder=3)
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    _label_layers(axis, names)
    axis.set_xlabel("magnitude")
    if shown:
        figure.legend(loc="outside lower center", ncols=2, fontsize=8, frameon=False)
    return _save(figure, path)


def plot_activation_statistics(stats: Mapping[str, Mapping[str, Any]], path: str | Path | None = None, title: str = "Activations") -> Any:
    """Mean with one standard deviation, and dead and zero shares, per layer.

    Args:
        stats: `ActivationMonitor.stats`.
        path: .png, .svg or .pdf; None only returns the figure.

    Raises:
        MissingExtraError: matplotlib is not installed (extra `plots`).
        UsageError: another file type.

    >>> type(plot_activation_statistics({"0": {"mean": 0.0, "std": 1.0, "has_nan": False, "has_inf": False}})).__name__
    'Figure'
    """
    names = list(stats)
    figure, (left, right) = _figure(len(names), title, columns=2)
    good = [(y, stats[n]) for y, n in enumerate(names) if not (stats[n]["has_nan"] or stats[n]["has_inf"])]
    left.errorbar(
        [s["mean"] for _, s in good],
        [y for y, _ in good],
        xerr=[s["std"] for _, s in good],
        fmt="o",
        ms=3.5,
        color=_BLUE,
        ecolor="#b9cde4",
        elinewidth=3,
    )
    for y, name in enumerate(names):
        if stats[name]["has_nan"] or stats[name]["has_inf"]:
            left.axhspan(y - 0.45, y + 0.45, color=_RED, alpha=0.15, linewidth=0)
            left.text(0.02, y, "not finite", va="center", fontsize=7, color=_RED, transform=left.get_yaxis_transform())
    spans = [abs(s["mean"]) + s["std"] for _, s in good if s["std"] > 0]
    if spans and max(spans) > 100 * sorted(spans)[len(spans) // 2]:
        left.set_xscale("symlog", linthresh=max(sorted(spans)[len(spans) // 2], 1e-12))  # one wild layer must not flatten the rest
    left.set_xlabel("mean ± standard deviation")
    y_positions = range(len(names))
    right.barh(y_positions, [stats[n].get("zero_fraction", 0.0) for n in names], height=0.7, color="#c9c9c9", label="zero")
    right.barh(y_positions, [stats[n].get("dead_fraction", 0.0) for n in names], height=0.4, color=_RED, label="dead units")
    right.barh(y_positions, [stats[n].get("saturated_fraction", 0.0) for n in names], height=0.2, color=_ORANGE, label="saturated")
    right.set_xlim(0, 1)
    right.set_xlabel("share")
    for axis in (left, right):
        _label_layers(axis, names)
    figure.legend(loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    return _save(figure, path)


def plot_spectra(spectra: Mapping[str, Any], path: str | Path | None = None, title: str = "Singular values") -> Any:
    """Singular values per layer, one mark each, the largest emphasised; a layer of zeros says so.

    Args:
        spectra: name -> what `spectrum` gives (or any sequence of values).
        path: .png, .svg or .pdf; None only returns the figure.

    Raises:
        MissingExtraError: matplotlib is not installed (extra `plots`).
        UsageError: another file type.

    >>> type(plot_spectra({"0": [3.0, 1.0]})).__name__
    'Figure'
    """
    names = list(spectra)
    values = {name: [float(v) for v in getattr(s, "values", s)] for name, s in spectra.items()}
    figure, (axis,) = _figure(len(names), title)
    low, high = _log_limits([v for row in values.values() for v in row])
    axis.axvline(1.0, color=_GREY, linewidth=0.8, linestyle=":")
    for y, name in enumerate(names):
        row = [v for v in values[name] if v > 0]
        axis.scatter(row, [y] * len(row), s=9, color="#8fb3d9", zorder=2)
        if not row:
            axis.text(low * 1.02, y, "zero", va="center", fontsize=7, color=_GREY)
    shown = [(y, max(values[n])) for y, n in enumerate(names) if max(values[n], default=0.0) > 0]
    axis.scatter([v for _, v in shown], [y for y, _ in shown], s=18, color=_ORANGE, zorder=3, label="largest")
    axis.set_xscale("log")
    axis.set_xlim(low, high)
    _label_layers(axis, names)
    axis.set_xlabel("singular value")
    if names:
        figure.legend(loc="outside lower center", fontsize=8, frameon=False)
    return _save(figure, path)
