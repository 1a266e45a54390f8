"""Figures for people: gradient flow, activation statistics, spectra; PNG, SVG or PDF by the file's name, readable at 100 layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from latent_drift.errors import MissingExtraError, UsageError

_BLUE, _ORANGE, _RED, _GREY = "#2f6db3", "#d9822b", "#b3261e", "#8a8a8a"


# Rows in one column of a figure: with 50, a hundred layers with weights and biases stand side by side on one screen.
_ROWS, _COLUMNS = 50, 6


class _Panel(NamedTuple):
    """A column of layers, one line each, first on top, and the axes beside one another that show them."""

    names: Sequence[str]
    axes: Sequence[Any]


def _panels(names: Sequence[str], title: str, axes: int = 1) -> tuple[Any, list[_Panel]]:
    """A figure with one legible line per layer, in as many columns as that takes."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtraError("plotting", "matplotlib", "plots") from error
    columns = min(max(math.ceil(len(names) / _ROWS), 1), _COLUMNS)
    rows = max(math.ceil(len(names) / columns), 1)
    label = 0.075 * max((min(len(n), 38) for n in names), default=0)  # inches
    width = label + (4.5 if axes == 1 else 5.5) if columns == 1 else columns * (label + 2.3 * axes)
    figure = Figure(figsize=(max(width, 5.5), min(1.1 + 0.17 * max(rows, 6), 60.0)), layout="constrained")
    figure.suptitle(title, fontsize=12)
    grid = figure.subplots(1, columns * axes, squeeze=False)[0]
    panels = [_Panel(names[c * rows : (c + 1) * rows], grid[c * axes : (c + 1) * axes]) for c in range(columns)]
    for panel in panels:
        for index, axis in enumerate(panel.axes):
            _arrange(axis, panel.names if index == 0 else None, rows)
    return figure, panels


def _arrange(axis: Any, names: Sequence[str] | None, rows: int) -> None:
    """Layer labels (long names keep their end, which tells them apart), equal line heights in all columns, a light grid."""
    if names is None:
        axis.set_yticks([])
    else:
        axis.set_yticks(range(len(names)), [n if len(n) <= 38 else "…" + n[-37:] for n in names], fontsize=7)
    axis.set_ylim(rows - 0.4, -0.6)
    axis.tick_params(axis="y", length=0)
    axis.tick_params(axis="x", labelsize=8)
    axis.grid(axis="x", color="#e0e0e0", linewidth=0.6)
    axis.set_axisbelow(True)
    for side in ("top", "right", "left"):
        axis.spines[side].set_visible(False)


def _note(axis: Any, y: int, text: str, color: str) -> None:
    """A word where a layer has no mark to show."""
    axis.text(0.02, y, text, va="center", fontsize=7, color=color, transform=axis.get_yaxis_transform())
    if color == _RED:
        axis.axhspan(y - 0.45, y + 0.45, color=_RED, alpha=0.15, linewidth=0)


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
    """Mean and largest gradient magnitude per layer on a logarithmic axis; zero, missing and non-finite gradients say so, vanishing and
    exploding layers have their names in red.

    Args:
        flow: what `analyze_gradient_flow` gives.
        path: .png, .svg or .pdf; None only returns the figure.

    Raises:
        MissingExtraError: matplotlib is not installed (extra `plots`).
        UsageError: another file type.

    >>> type(plot_gradient_flow({"0.weight": {"mean": 1e-3, "max": 1e-2}})).__name__
    'Figure'
    """
    without = [n for n in getattr(flow, "without_gradient", []) if n not in flow]
    outstanding = {*getattr(flow, "vanishing", []), *getattr(flow, "exploding", [])}
    figure, panels = _panels([*flow, *without], title)
    low, high = _log_limits([v for row in flow.values() for v in (row["mean"], row["max"])])
    for names, (axis,) in panels:
        shown = [(y, flow[n]) for y, n in enumerate(names) if n in flow and math.isfinite(flow[n]["max"]) and flow[n]["max"] > 0]
        for y, name in enumerate(names):
            if name in without:
                _note(axis, y, "no gradient", _GREY)
            elif not (math.isfinite(flow[name]["mean"]) and math.isfinite(flow[name]["max"])):
                _note(axis, y, "not finite", _RED)
            elif flow[name]["max"] == 0:
                _note(axis, y, "zero", _GREY)
        for label, name in zip(axis.get_yticklabels(), names, strict=True):
            label.set_color(_RED if name in outstanding else "black")
        means, peaks, at = [max(r["mean"], low) for _, r in shown], [r["max"] for _, r in shown], [y for y, _ in shown]
        axis.hlines(at, means, peaks, color="#b9cde4", linewidth=3, zorder=2)
        axis.scatter(means, at, s=14, color=_BLUE, label="mean |gradient|", zorder=3)
        axis.scatter(peaks, at, s=14, color=_ORANGE, label="largest |gradient|", zorder=3)
        axis.set_xscale("log")
        axis.set_xlim(low, high)
        axis.set_xlabel("magnitude", fontsize=9)
    _legend(figure, panels[0].axes)
    return _save(figure, path)


def _legend(figure: Any, axes: Sequence[Any]) -> None:
    """One legend below all columns, of the marks of the first."""
    handles = [handle for axis in axes for handle in zip(*axis.get_legend_handles_labels(), strict=True)]
    if handles:
        figure.legend(*zip(*handles, strict=True), loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)


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
    figure, panels = _panels(list(stats), title, axes=2)
    spans = sorted(abs(s["mean"]) + s["std"] for s in stats.values() if s["std"] and not (s["has_nan"] or s["has_inf"]))
    usual = spans[len(spans) // 2] if spans else 1.0
    widest = max(spans, default=1.0)
    for names, (left, right) in panels:
        good = [(y, stats[n]) for y, n in enumerate(names) if not (stats[n]["has_nan"] or stats[n]["has_inf"])]
        at, means = [y for y, _ in good], [s["mean"] for _, s in good]
        left.errorbar(means, at, xerr=[s["std"] for _, s in good], fmt="o", ms=3.5, color=_BLUE, ecolor="#b9cde4", elinewidth=3)
        for y, name in enumerate(names):
            if stats[name]["has_nan"] or stats[name]["has_inf"]:
                _note(left, y, "not finite", _RED)
        if widest > 100 * usual:
            left.set_xscale("symlog", linthresh=max(usual, 1e-12))  # one wild layer must not flatten the rest
        left.set_xlim(-1.05 * widest, 1.05 * widest)
        left.set_xlabel("mean ± standard deviation", fontsize=9)
        for key, height, color, label in (
            ("zero_fraction", 0.7, "#c9c9c9", "zero"),
            ("dead_fraction", 0.4, _RED, "dead units"),
            ("saturated_fraction", 0.2, _ORANGE, "saturated"),
        ):
            right.barh(range(len(names)), [stats[n].get(key, 0.0) for n in names], height=height, color=color, label=label)
        right.set_xlim(0, 1)
        right.set_xticks([0, 0.5, 1])
        right.set_xlabel("share of values or units", fontsize=9)
    _legend(figure, panels[0].axes[1:])
    return _save(figure, path)


def plot_spectra(spectra: Mapping[str, Any], path: str | Path | None = None, title: str = "Singular values") -> Any:
    """Singular values per layer, one mark each, the largest emphasised; layers of zeros, and ones that are not finite, say so.

    Args:
        spectra: name -> what `spectrum` gives (or any sequence of values).
        path: .png, .svg or .pdf; None only returns the figure.

    Raises:
        MissingExtraError: matplotlib is not installed (extra `plots`).
        UsageError: another file type.

    >>> type(plot_spectra({"0": [3.0, 1.0]})).__name__
    'Figure'
    """
    values = {name: [float(v) for v in getattr(s, "values", s)] for name, s in spectra.items()}
    figure, panels = _panels(list(values), title)
    low, high = _log_limits([v for row in values.values() for v in row])
    for names, (axis,) in panels:
        rows = [(y, [v for v in values[n] if v > 0 and math.isfinite(v)]) for y, n in enumerate(names)]
        for y, name in enumerate(names):
            if not all(map(math.isfinite, values[name])):
                _note(axis, y, "not finite", _RED)
            elif not any(values[name]):
                _note(axis, y, "zero", _GREY)
        others = [(v, y) for y, row in rows for v in row if v < max(row)]
        axis.axvline(1.0, color=_GREY, linewidth=0.8, linestyle=":")
        axis.scatter([v for v, _ in others], [y for _, y in others], s=9, color="#8fb3d9", zorder=2, label="singular values")
        axis.scatter([max(row) for _, row in rows if row], [y for y, row in rows if row], s=18, color=_ORANGE, zorder=3, label="the largest")
        axis.set_xscale("log")
        axis.set_xlim(low, high)
        axis.set_xlabel("singular value", fontsize=9)
    _legend(figure, panels[0].axes)
    return _save(figure, path)
