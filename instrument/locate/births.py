"""Non-finite numbers made of finite ones in the step that is under way: memories until the step fails, then the first is the origin."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any

from instrument.events import Event, Site

MOST_BIRTHS = 64  # of one step: the first is the one that is named
FULL_LOOKS = 3  # a line that makes infinities on purpose is not measured for ever

Place = tuple[str, int]


@dataclass(frozen=True, slots=True)
class Birth:
    """An operation at a line that gave a non-finite result; `facts` are the fields of an event that describe its input."""

    code: str
    op: str
    site: Site
    message: str
    facts: dict[str, Any] = field(default_factory=dict)
    weak: bool = False
    """Infinities that came in as data may be a mask: they are named only if nothing else was born."""
    in_backward: bool = False
    """The operation ran inside backward: in the backward of an autograd.Function, or as the check of a gradient."""
    event: Event | None = None
    """The event that tells of it already: the number was bounded on the spot."""
    always: bool = False
    """That the step went well says nothing about this line: it went well because the number was bounded."""
    trend: str | None = None
    """How the steps before led here."""
    made_at: Site | None = None
    """For bad data that came in at `site`: the statement that had made it bad."""


_Step = dict[tuple[Place, str], Birth]
"""The first birth of each line and operation, in order."""


class Births:
    """The births of the current step, in order, and the lines that are known to make infinities in healthy steps (log(0) in a mask)."""

    def __init__(self) -> None:
        self._current: _Step = {}  # read from copies: another thread may add to it
        self._carried: list[_Step] = []
        self._looked_at: Counter[Place] = Counter()
        self._harmless: set[Place] = set()
        self.latest_harmless: Birth | None = None
        """Of this step, at a line that makes infinities in steps that go well: it may still have spoilt a learning rate."""

    def wants_facts(self, site: Site) -> bool:
        """Whether the range of this line's input is still worth reading."""
        return self._looked_at[(site.file, site.line)] < FULL_LOOKS

    def is_harmless(self, site: Site) -> bool:
        """Whether this line makes infinities in steps that go well."""
        return (site.file, site.line) in self._harmless

    def reopen(self, site: Site) -> None:
        """What this line made went well where it was made, and spoiled a later step."""
        self._harmless.discard((site.file, site.line))

    def add(self, birth: Birth) -> None:
        """Remember the first birth of each line and operation."""
        place = (birth.site.file, birth.site.line)
        if (place, birth.op) not in self._current and len(self._current) < MOST_BIRTHS:
            self._current[place, birth.op] = birth
            self._looked_at[place] += 1

    @property
    def number(self) -> int:
        """How many places were remembered in the step under way."""
        return len(self._current)

    def since(self, number: int) -> list[Birth]:
        """Those of the step under way after the first `number` places, in order."""
        return [birth for (place, _), birth in list(self._current.copy().items())[number:] if place not in self._harmless]

    def origin(self, *, loss_is_finite: bool = False) -> Birth | None:
        """The first birth of this step at a line that does not also have them in healthy steps.

        Where the loss is finite and its gradient is not, what was born in backward comes first: bad numbers of the forward pass did not reach
        the loss (a `where` left them out).
        """
        candidates = self._candidates()
        if loss_is_finite:
            candidates.sort(key=lambda birth: not birth.in_backward)
        return next((birth for birth in candidates if not birth.weak), candidates[0] if candidates else None)

    def unbounded(self) -> list[Birth]:
        """Those that nothing was done about on the spot: one of them spoiled the step."""
        return [birth for birth in self._candidates() if birth.event is None]

    def carried(self) -> list[Birth]:
        """What was born before the latest step of another optimizer, where nothing was since: a GAN's generator makes what the discriminator steps
        for first."""
        return [] if self._current else self._candidates()

    def _candidates(self) -> list[Birth]:
        for step in (self._current, *reversed(self._carried)):
            found = [birth for (place, _), birth in step.copy().items() if place not in self._harmless]
            if found:
                return found
        return []

    def finish_step(self, optimizers: Collection[object], *, healthy: bool) -> None:
        """Forget the step; what was born in one that went well is harmless there. One of several optimizers may have stepped for another loss: then
        that is known when each of them has."""
        self.latest_harmless = None
        if not self._current and not self._carried:
            return
        if not healthy:
            self._current.clear()
            self._carried.clear()
            return
        self._carried.append(self._current)
        self._current = {}
        while len(self._carried) >= max(len(optimizers), 1):
            over = self._carried.pop(0).copy()
            self._harmless.update(place for (place, _), birth in over.items() if not birth.always)
        if not any(self._carried):
            self._carried.clear()
