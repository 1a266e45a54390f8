"""Finding tensors in nested arguments and results and at the end of a graph, and those that hold a bad number."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor

from instrument.runtime import is_readable
from latent_drift.numerics.finite import is_finite


def is_there(x: Any) -> bool:
    """Whether this is a plain tensor, real or complex, with numbers in it. One whose memory was given back (`fully_shard` does) holds nothing."""
    return is_readable(x) and x.numel() > 0 and x.untyped_storage().nbytes() > 0


def is_bad(x: Any) -> bool:
    """Whether a plain tensor holds a NaN or an infinity."""
    return is_there(x) and not is_finite(x)


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dictionaries, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors_in(item)
    elif isinstance(value, dict):
        for item in value.values():
            yield from tensors_in(item)


def leaves_behind(roots: Sequence[Any]) -> list[Tensor]:
    """The leaf tensors that a backward pass from these roots reaches."""
    pending = [root.grad_fn for root in roots if isinstance(root, Tensor) and root.grad_fn is not None]
    seen: set[Any] = set(pending)
    leaves: list[Tensor] = []
    while pending:
        node = pending.pop()
        variable = getattr(node, "variable", None)
        if isinstance(variable, Tensor):
            leaves.append(variable)
        for following, _ in node.next_functions:
            if following is not None and following not in seen:
                seen.add(following)
                pending.append(following)
    return leaves
