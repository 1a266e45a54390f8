"""What somebody who wrote a name that does not exist most likely meant."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import SequenceMatcher

_ALIKE = 0.6


def nearest(name: str, known: Iterable[str], most: int = 3) -> list[str]:
    """The known names most like `name`, the most alike first: those that contain it or are contained in it count as alike."""
    wanted = name.lower()

    def likeness(candidate: str) -> float:
        other = candidate.lower()
        contained = len(wanted) > 1 and len(other) > 1 and (wanted in other or other in wanted)
        return SequenceMatcher(None, wanted, other).ratio() + (0.5 if contained else 0.0)

    ranked = sorted(known, key=lambda candidate: (-likeness(candidate), candidate))
    return [candidate for candidate in ranked[:most] if likeness(candidate) >= _ALIKE]


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """A sentence with the nearest names, or, where none is near, with all of them."""
    known = list(known)
    near = nearest(name, known)
    return f"Did you mean {' or '.join(near)}?" if near else f"Known: {', '.join(known)}."
