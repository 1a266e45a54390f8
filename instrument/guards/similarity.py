"""cosine_similarity of a vector that is 0, where the epsilon is 0 too (NS303).

Hazard: torch divides by the norms, floored at eps = 1e-8; in float16 that is 0, so two vectors of which one is 0 give 0 / 0 = NaN.
Forward: unchanged, unless the config or an earlier failure at the line asks for a bound: then the similarity is 0.
Backward: 0 for those vectors.

F.normalize and F.pairwise_distance are written in terms of norms and `/`, which have guards of their own.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from instrument.guards.base import Spelling, spelled
from instrument.guards.gradient_filter import again, filtered, with_own_numbers
from instrument.guards.result import AbstractResultGuard, Call, total
from instrument.guards.rows import elements_of_rows
from instrument.runtime import RUNTIME, is_plain

_NAMES = ("x1", "x2")


class SimilarityGuard(AbstractResultGuard):
    """cosine_similarity, in every spelling; nn.CosineSimilarity and the embedding loss's Python callers reach it."""

    code: ClassVar[str] = "NS303"
    section: ClassVar[str] = "division"

    def spellings(self) -> list[Spelling]:
        return spelled("cosine_similarity", (torch, "cosine_similarity"), (F, "cosine_similarity"))

    def is_clear(self, op: str, out: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bool:
        return math.isfinite(total(out))

    def message(self, call: Call) -> str:
        return "cosine_similarity of a vector that is 0, with an epsilon that is 0 in this dtype"

    def settled(self, call: Call) -> Any:
        out: Tensor = call.out
        vectors = [call.argument(i, name) for i, name in enumerate(_NAMES)]
        if not all(is_plain(v) and v.is_cpu for v in vectors):
            return out
        dim = call.argument(2, "dim", 1)
        broken = ~torch.isfinite(out.detach())
        shape = torch.broadcast_shapes(*(v.shape for v in vectors))  # type: ignore[no-untyped-call]
        dims = (dim % max(len(shape), 1),)
        finite = torch.ones_like(broken)
        for v in vectors:
            finite = finite & torch.isfinite(v.detach()).expand(shape).all(dims[0])
        bad = broken & finite
        if not bool(bad.any()):
            return out
        site = RUNTIME.run.site()
        self.born(call, bad, vectors[0], site)
        result = out
        if self.neutralises(out):
            told = self.told(call, vectors[0], site)
            replaced: dict[int | str, Tensor] = {}
            for i, name in enumerate(_NAMES):
                if vectors[i].requires_grad:
                    whole = vectors[i].expand(shape)
                    replaced[call.key(i, name)] = filtered(whole, elements_of_rows(bad, whole, dims), told)
            result = with_own_numbers(again(call.original, call.args, call.kwargs, replaced), out, bad, told)
        if self.bounds_forward(site):
            self.note_bounded(call, bad, vectors[0], site)
            result = torch.where(bad, 0.0, result)
        return result
