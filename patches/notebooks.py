"""Notebooks, read only: the code cells as one text, and the way back from its lines to cell and line."""

from __future__ import annotations

import json
from dataclasses import dataclass

_MAGIC = ("%", "!", "?")


@dataclass(frozen=True, slots=True)
class Notebook:
    """The code of a notebook and, for each of its lines, the cell (from 1, all cells counted) and the line in the cell."""

    text: str
    places: tuple[tuple[int, int], ...]


def read_notebook(raw: str) -> Notebook:
    """Joins the code cells. Magics and shell lines become comments of the same line; cells in another language are left out.

    Raises:
        ValueError: not a notebook.
    """
    data = json.loads(raw)
    if not isinstance(data, dict) or not isinstance(data.get("cells"), list):
        raise ValueError("no cells: not a notebook of format 4")
    lines: list[str] = []
    places: list[tuple[int, int]] = []
    for number, cell in enumerate(data["cells"], 1):
        if cell.get("cell_type") != "code":
            continue
        source = cell.get("source", "")
        text = "".join(source) if isinstance(source, list) else str(source)
        if text.lstrip().startswith("%%"):
            continue
        for position, line in enumerate(text.splitlines(), 1):
            bare = line.lstrip()
            if bare.startswith(_MAGIC) or bare.rstrip().endswith("?"):
                line = f"{line[: len(line) - len(bare)]}pass  # {bare}"
            lines.append(line)
            places.append((number, position))
    return Notebook("\n".join(lines) + "\n", tuple(places))
