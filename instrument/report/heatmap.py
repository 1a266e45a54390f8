"""Gradient norms by layer and step as a picture: a PNG with one pixel a cell, drawn without a library, which the page enlarges."""

from __future__ import annotations

import base64
import math
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass

from instrument.layer_norms import LayerTable
from instrument.report.scales import Tick, core

MOST_ROWS = 80
"""Rows that can be read; a larger model is shown by module, its parameters' norms combined."""

_ASIDE = 0.15
"""Share of the cells at each end that need not be told apart: a bad step colours a whole column."""

# Nine colours of even steps in lightness from dark to light (viridis, in the public domain), then what is no magnitude.
_RAMP = ("440154", "472d7b", "3b528b", "2c728e", "21918c", "28ae80", "5ec962", "addc30", "fde725")
_SHADES = 240
_ZERO, _BAD, _ABSENT = _SHADES, _SHADES + 1, _SHADES + 2
ZERO_COLOUR, BAD_COLOUR = "8a8f98", "e5007a"


@dataclass(frozen=True, slots=True)
class Heatmap:
    """The picture as a data URI, its rows and columns, and its legend."""

    image: str
    rows: tuple[str, ...]
    steps: tuple[int, ...]
    ticks: tuple[Tick, ...]
    low: float | None
    high: float | None
    lowest: bool
    highest: bool
    """Whether the ramp ends at the smallest and the largest norm; what is beyond has the last colour."""
    gradient: str
    bad: int
    zero: int
    combined: bool
    cells: tuple[tuple[float | str | None, ...], ...]
    """The norms, non-finite ones as text, for the readout."""


def build(table: LayerTable) -> Heatmap | None:
    """The heat map of a table; None where no column was taken."""
    if not table.steps or not table.names:
        return None
    names, norms = _grouped(table)
    finite = [v for row in norms for v in row if v is not None and math.isfinite(v) and v > 0.0]
    low, high = core(finite, _ASIDE) if finite else (None, None)
    pixels = [[_shade(value, low, high) for value in row] for row in norms]
    flat = [p for row in pixels for p in row]
    columns = len(table.steps)
    shown = sorted({0, columns - 1, *range(0, columns, max(1, columns // 5))} if columns > 1 else {0})
    shown = [c for c in shown if c in (0, columns - 1) or columns - 1 - c >= columns / 8]
    return Heatmap(
        image="data:image/png;base64," + base64.b64encode(_png(pixels)).decode("ascii"),
        rows=tuple(names),
        steps=table.steps,
        ticks=tuple(Tick((c + 0.5) / columns, str(table.steps[c])) for c in shown),
        low=low,
        high=high,
        lowest=bool(finite) and low == min(finite),
        highest=bool(finite) and high == max(finite),
        gradient=", ".join(f"#{colour}" for colour in _RAMP),
        bad=flat.count(_BAD),
        zero=flat.count(_ZERO),
        combined=names != list(table.names),
        cells=tuple(tuple(str(v) if v is not None and not math.isfinite(v) else v for v in row) for row in norms),
    )


def _grouped(table: LayerTable) -> tuple[list[str], list[tuple[float | None, ...]]]:
    """The rows of the table, combined by module, then by the module above, until they can be read."""
    names, norms = list(table.names), list(table.norms)
    while len(names) > MOST_ROWS and any("." in name for name in names):
        depth = max(name.count(".") for name in names)
        groups: dict[str, list[tuple[float | None, ...]]] = {}
        for name, row in zip(names, norms, strict=True):
            groups.setdefault(name.rpartition(".")[0] if name.count(".") == depth else name, []).append(row)
        names, norms = list(groups), [_combined(rows) for rows in groups.values()]
    if len(names) > MOST_ROWS:  # plain tensors without a path: what follows the last readable row is one row
        rest = norms[MOST_ROWS - 1 :]
        names, norms = [*names[: MOST_ROWS - 1], f"{len(rest)} more"], [*norms[: MOST_ROWS - 1], _combined(rest)]
    return names, norms


def _combined(rows: Sequence[tuple[float | None, ...]]) -> tuple[float | None, ...]:
    """The norm of several tensors taken as one, column by column."""
    found: list[float | None] = []
    for column in zip(*rows, strict=True):
        there = [v for v in column if v is not None]
        found.append(math.hypot(*there) if there and not any(math.isnan(v) for v in there) else math.nan if there else None)
    return tuple(found)


def _shade(value: float | None, low: float | None, high: float | None) -> int:
    if value is None:
        return _ABSENT
    if not math.isfinite(value):
        return _BAD
    if value <= 0.0 or low is None or high is None:
        return _ZERO
    span = math.log(high) - math.log(low)
    at = (math.log(value) - math.log(low)) / span if span > 0.0 else 0.5
    return round(min(1.0, max(0.0, at)) * (_SHADES - 1))


def _palette() -> bytes:
    anchors = [bytes.fromhex(colour) for colour in _RAMP]
    colours = []
    for shade in range(_SHADES):
        at = shade / (_SHADES - 1) * (len(anchors) - 1)
        lower = min(int(at), len(anchors) - 2)
        part = at - lower
        colours.append(bytes(round(a + (b - a) * part) for a, b in zip(anchors[lower], anchors[lower + 1], strict=True)))
    return b"".join(colours) + bytes.fromhex(ZERO_COLOUR) + bytes.fromhex(BAD_COLOUR) + b"\0\0\0"


def _png(pixels: Sequence[Sequence[int]]) -> bytes:
    """A palette picture; the last colour is transparent."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", len(pixels[0]), len(pixels), 8, 3, 0, 0, 0)
    lines = b"".join(b"\0" + bytes(row) for row in pixels)
    transparency = b"\xff" * _ABSENT + b"\0"
    chunks = (
        chunk(b"IHDR", header),
        chunk(b"PLTE", _palette()),
        chunk(b"tRNS", transparency),
        chunk(b"IDAT", zlib.compress(lines)),
        chunk(b"IEND", b""),
    )
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)
