"""What `torch.overrides` says of a function that is replaced: logging modes print these names, dispatching ones look functions up in these lists."""

from __future__ import annotations

import torch
from torch import overrides
from torch.nn import functional as F

import instrument
from instrument.session import _INSTALLATION


def _names() -> list[str | None]:
    functions = (torch.exp, torch.Tensor.exp, torch.Tensor.div_, torch.softmax, F.cross_entropy, torch.linalg.norm, torch.special.expm1, torch.log)
    return [overrides.resolve_name(function) for function in functions]  # type: ignore[no-untyped-call]


def test_names_are_known_inside_a_block() -> None:
    plain = _names()
    original = torch.exp
    with instrument.stable(profile="guard"):
        assert torch.exp is not original
        assert _names() == plain
        assert overrides.resolve_name(original) == "torch.exp"  # type: ignore[no-untyped-call]
    assert _names() == plain
    assert None not in plain


def test_afterwards_the_tables_hold_torchs_own_functions() -> None:
    with instrument.stable(profile="guard"):
        stand_ins = {id(new) for new in _INSTALLATION._table.values()}
        _names()
    functions, names = overrides._get_overridable_functions()
    assert stand_ins.isdisjoint(map(id, names))
    assert stand_ins.isdisjoint(id(function) for listed in functions.values() for function in listed)
    assert stand_ins.isdisjoint(map(id, overrides._get_tensor_methods()))


def test_functions_are_listed_under_the_objects_that_the_script_knows() -> None:
    counts = {id(space): len(listed) for space, listed in overrides.get_overridable_functions().items()}
    with instrument.stable(profile="guard"):
        listed = overrides.get_overridable_functions()
        assert torch.exp in listed[torch]
        assert torch.Tensor.exp in listed[torch.Tensor]
        assert overrides.is_tensor_method_or_property(torch.Tensor.exp)
        assert not overrides.is_tensor_method_or_property(torch.exp)
        assert {id(space): len(found) for space, found in listed.items()} == counts
    assert torch.exp in overrides.get_overridable_functions()[torch]
