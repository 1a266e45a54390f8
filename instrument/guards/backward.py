"""backward on a loss that is NaN or Inf (NS509): said once, at the line that called it; the gradients are judged before the step."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from instrument.guards.base import Function, Spelling, is_compiling, mimic
from instrument.runtime import RUNTIME, is_plain, without_function_modes

CODE = "NS509"


def spellings() -> list[Spelling]:
    """`Tensor.backward` reaches `torch.autograd.backward`, so one attribute covers both."""
    return [Spelling(torch.autograd, "backward", "backward")]


def stand_in(original: Function, spelling: Spelling) -> Function:
    """`torch.autograd.backward` that looks at its roots first. On an accelerator nothing is read: the gradients tell at the step."""

    @mimic(original, spelling)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        if is_compiling() or not RUNTIME.active:
            return original(*args, **kwargs)
        roots = args[0] if args else kwargs.get("tensors")
        if isinstance(roots, Tensor):
            _look_at(roots)
        elif isinstance(roots, list | tuple):
            for root in roots:
                _look_at(root)
        return original(*args, **kwargs)

    return guarded


def _look_at(root: Any) -> None:
    if not is_plain(root) or not root.is_cpu or root.numel() != 1:
        return
    with without_function_modes():
        value = root.detach().item()
    if math.isfinite(value):
        return
    run = RUNTIME.run
    run.blame()
    run.note(CODE, "observed", "backward", x=root, message=f"the loss is {value} when backward is called; its gradients are judged before the step")
