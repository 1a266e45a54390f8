"""The node that a failing graph points at, until a later step shows the line that makes it."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from instrument.events import Site
from instrument.guards.step import _STEPPING
from instrument.locate.graph import Place, Suspect, nodes_behind, suspect_behind
from instrument.locate.watch import Watch

_LOG = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Located:
    """A suspect and its line; `site` is None where no line of the script's is known."""

    suspect: Suspect
    site: Site | None
    module: str | None = None


def _suspect(roots: Sequence[Any], step: int) -> Suspect | None:
    """What the graph says. Nodes are whatever a script or an extension made them: one that cannot be read must not stop the script."""
    try:
        suspect = suspect_behind(roots, step)
    except Exception:
        _LOG.exception("the graph of a loss that is not finite could not be read")
        return None
    # A closure may be called with parameters that the optimizer's own step made bad: they are not where it began.
    return None if suspect is not None and suspect.code == "NS804" and _STEPPING else suspect


class Suspects:
    """At most one node is looked for at a time. Where a node was found once, its next failure is named at once."""

    def __init__(self) -> None:
        self.pending: Suspect | None = None
        self._seen_at: Site | None = None
        self._places: dict[tuple[Any, ...], Place] = {}

    def look(self, roots: Sequence[Any], step: int, at: Site | None) -> Located | None:
        """Read the graph behind a bad loss; the result, if the node's line is known from before.

        Args:
            at: the line that asked for the gradient: the last resort of `give_up`.
        """
        suspect = _suspect(roots, step) if roots else None
        if suspect is None:
            return None
        if suspect.site is not None:
            self.pending = None
            return Located(suspect, suspect.site)
        if suspect.key in self._places:
            self.pending = None
            return Located(suspect, *self._places[suspect.key])
        self.pending, self._seen_at = suspect, at
        return None

    def meet(self, roots: Sequence[Any], watch: Watch) -> Located | None:
        """Lay the graph of a watched step beside the one that is wanted."""
        if self.pending is None or not watch.places:
            return None
        place = self.pending.place_in(nodes_behind(roots), watch.places, watch.entered_at, watch.since)
        if place is None:
            return None
        suspect, self.pending = self.pending, None
        self._places[suspect.key] = place
        return Located(suspect, *place)

    def drop(self) -> None:
        """It was found in another way."""
        self.pending = None

    def give_up(self) -> Located | None:
        """No further step ran: what the graph said, at the line that asked for the gradient."""
        if self.pending is None:
            return None
        suspect, self.pending = self.pending, None
        unsaid = "; the line that ran it is not known, since no later step showed it: this is the line that asked for the gradient"
        return Located(replace(suspect, message=suspect.message + unsaid), self._seen_at)
