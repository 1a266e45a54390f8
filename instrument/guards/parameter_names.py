"""What a person calls a parameter: for reports."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from instrument.callsite import user_frame


def parameter_names(parameters: Sequence[Tensor]) -> list[str]:
    """What a person calls these tensors: the path in a model that a running frame can see, else their shape. For reports only."""
    wanted = {id(p): None for p in parameters}
    names: dict[int, str] = {}
    frame = user_frame()
    while frame is not None and len(names) < len(wanted):
        for label, value in [*frame.f_locals.items(), *frame.f_globals.items()]:
            if isinstance(value, nn.Module):
                for name, parameter in value.named_parameters():
                    if id(parameter) in wanted:
                        names.setdefault(id(parameter), name)
            elif id(value) in wanted:
                names.setdefault(id(value), label)
        frame = frame.f_back
    return [names.get(id(p), f"a parameter of shape {tuple(p.shape)}") for p in parameters]
