"""`load_state_dict`: parameters and buffers that come out of a checkpoint with NaN or Inf in them are remembered with the line that loaded them
(NS804).

Nothing is said there: a state may hold infinities on purpose (a mask). If a step fails for such a parameter, that line is where it came in.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from instrument.callsite import user_site
from instrument.events import Site
from instrument.guards.base import Function, Spelling, is_compiling, mimic
from instrument.runtime import RUNTIME, is_plain, is_plain_on_cpu, without_function_modes
from latent_drift.numerics.finite import is_finite

_LOADED_AT = WeakIdKeyDictionary()
_LOADED_BUFFERS = WeakIdKeyDictionary()


def spellings() -> list[Spelling]:
    """A module's own, which subclasses that have one of theirs call."""
    return [Spelling(nn.Module, "load_state_dict", "load_state_dict")]


def stand_in(original: Function, spelling: Spelling) -> Function:
    """Loads, then looks at what is there now."""

    @mimic(original, spelling)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        result = original(*args, **kwargs)
        if RUNTIME.active and not is_compiling() and args and isinstance(args[0], nn.Module):
            with without_function_modes():
                for parameter in args[0].parameters():
                    if is_plain(parameter) and parameter.untyped_storage().nbytes() > 0:
                        if parameter.is_cpu and not is_finite(parameter):
                            _LOADED_AT[parameter] = user_site()
                        else:
                            _LOADED_AT.pop(parameter, None)
                for name, buffer in args[0].named_buffers():
                    if is_plain_on_cpu(buffer) and buffer.untyped_storage().nbytes() > 0:
                        if not is_finite(buffer):
                            _LOADED_BUFFERS[buffer] = name, user_site()
                        else:
                            _LOADED_BUFFERS.pop(buffer, None)
        return result

    return guarded


def loaded_at(parameter: Tensor) -> Site | None:
    """The line that loaded this parameter with a bad number in it."""
    site: Site | None = _LOADED_AT.get(parameter)
    return site


def loaded_buffer(x: Tensor) -> tuple[str, Site | None] | None:
    """The name of the buffer that this tensor is or shares its memory with, and the line that loaded it with a bad number in it."""
    for buffer, found in _LOADED_BUFFERS.items():
        if buffer is x or (buffer.untyped_storage().data_ptr() == x.untyped_storage().data_ptr() and buffer.shape == x.shape):
            name, site = found
            return name, site
    return None
