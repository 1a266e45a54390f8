"""The script looks by itself whether its loss is finite: `torch.isnan(loss)`, `loss != loss`, `float(loss)`.

Many stop there, and no backward pass comes that would be judged. Nothing is altered; only a tensor of one element that has a graph counts.
"""

from __future__ import annotations

import math
import sys
from typing import Any

import torch

from instrument.callsite import is_users
from instrument.guards.base import Function, Spelling, is_traced, mimic
from instrument.runtime import RUNTIME, is_plain_on_cpu, without_function_modes


def spellings() -> list[Spelling]:
    """The questions, as functions and methods. `item` is not among them: optimizers and guards call it at every step."""
    found = [Spelling(owner, name, "look") for name in ("isnan", "isinf", "isfinite") for owner in (torch, torch.Tensor)]
    found.append(Spelling(torch.Tensor, "__float__", "look"))
    return [*found, Spelling(torch.Tensor, "ne", "compare"), Spelling(torch.Tensor, "__ne__", "compare")]


def stand_in(original: Function, spelling: Spelling) -> Function:
    """Calls through; a loss that is not finite is looked into."""
    compares = spelling.op == "compare"

    @mimic(original, spelling)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if is_traced() or not RUNTIME.active or not args or (compares and (len(args) < 2 or args[0] is not args[1])):
            return result
        x = args[0]
        if is_plain_on_cpu(x) and x.grad_fn is not None and x.numel() == 1:
            with without_function_modes():
                bad = not math.isfinite(x.detach().item())
            if bad and is_users(sys._getframe(1).f_code.co_filename):
                RUNTIME.run.search.sight(x)
        return result

    return guarded
