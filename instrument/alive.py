"""The living instances of some classes, found among all objects without holding on to the others.

`gc.get_objects()` in a list of one's own is no harmless look: another thread may be building a tuple at that moment (`asyncio.gather(*calls)`,
`tuple(generator)`), and CPython refuses to resize a tuple that somebody else refers to: SystemError, in the script. Here references to all objects
come and go within one call of C code, during which no other thread runs; those that stay are of objects that refer to a wanted class.
"""

from __future__ import annotations

import gc
from collections.abc import Iterable
from itertools import chain
from typing import Any


def instances_of(classes: Iterable[type]) -> list[Any]:
    """The living objects whose class is one of these; of subclasses only those that are named."""
    wanted = {id(cls): cls for cls in classes}
    # Lazily, so that the list of all objects is never a value of this function.
    existing = set(map(id, map(type, chain.from_iterable(map(gc.get_objects, (None,))))))
    inhabited = [cls for key, cls in wanted.items() if key in existing]
    if not inhabited:
        return []
    # An instance refers to its class.
    return [o for o in gc.get_referrers(*inhabited) if id(type(o)) in wanted]


def with_subclasses(root: type) -> set[type]:
    """A class and all that derive from it, at any depth."""
    found: set[type] = set()
    pending = [root]
    while pending:
        cls = pending.pop()
        if cls not in found:
            found.add(cls)
            pending.extend(type.__subclasses__(cls))
    return found
