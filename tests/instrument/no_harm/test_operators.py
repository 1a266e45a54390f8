"""Every operator of torch's own database gives the same bits inside a block as outside, forward, backward and twice backward."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.instrument.no_harm import databases
from tests.instrument.no_harm.operator_sweep import Figures, cases, compare, refusals, sweep
from tests.instrument.no_harm.standins import Current

PARTS = 12
# Kernels that read memory nobody wrote: least squares of an underdetermined system, and what is built on it.
UNDETERMINED = {"linalg_lstsq", "linalg_lstsq_grad_oriented"}
FLOATS = [torch.float64, torch.float16, torch.bfloat16]
OTHERS = [torch.complex64, torch.int64]


def _part(index: int) -> list[Any]:
    return databases.operators()[index::PARTS]


def _check(figures: Figures, record: Any, heading: str) -> None:
    record(
        heading,
        entries=figures.entries,
        that_reach_a_guard=len(figures.reaching),
        calls_compared=figures.compared,
        with_gradients=figures.gradients,
        with_second_gradients=figures.second_gradients,
        that_raised_the_same=figures.errors,
        differing=len(figures.differing),
        not_determined_by_torch=len(figures.undetermined),
    )
    assert figures.entries > 10
    assert figures.differing == []
    kernels = {line.partition(" ")[0] for line in figures.undetermined}
    assert kernels <= UNDETERMINED


@pytest.mark.parametrize("part", range(PARTS))
def test_operators_keep_their_bits_in_float32(part: int, record_figures: Any) -> None:
    _check(sweep(_part(part), torch.float32, most=4, extra=1), record_figures, "op_db float32")


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("part", range(0, PARTS, 4))
def test_operators_keep_their_bits_in_other_floats(part: int, dtype: torch.dtype, record_figures: Any) -> None:
    for index in range(part, part + 4):
        _check(sweep(_part(index), dtype, most=1, extra=1), record_figures, f"op_db {dtype}")


@pytest.mark.parametrize("dtype", OTHERS, ids=str)
def test_operators_on_numbers_that_no_guard_looks_at_keep_even_what_is_not_finite(dtype: torch.dtype, record_figures: Any) -> None:
    _check(sweep(databases.operators(), dtype, most=1, extra=1, order=1), record_figures, f"op_db {dtype}")


@pytest.mark.parametrize("part", range(0, PARTS, 4))
def test_what_raises_outside_raises_the_same_inside(part: int, record_figures: Any) -> None:
    for index in range(part, part + 4):
        figures = refusals(_part(index))
        assert figures.errors > 0
        _check(figures, record_figures, "op_db error inputs")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, *FLOATS, *OTHERS, torch.bool, torch.complex128, torch.int32, torch.uint8], ids=str)
@pytest.mark.parametrize("part", range(PARTS))
def test_every_sample_of_every_operator_keeps_its_bits(part: int, dtype: torch.dtype, record_figures: Any) -> None:
    _check(sweep(_part(part), dtype, most=1000, extra=3), record_figures, f"op_db {dtype}, every sample")


def test_the_comparison_finds_one_bit_in_one_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Negative control: a stand-in whose forward is right and whose gradient is one ulp off is found, and only it."""
    entry = next(e for e in databases.operators() if e.name == "exp")
    original = torch.exp

    class OneUlpOff(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
            out = original(x)
            ctx.save_for_backward(out)
            return out

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            (out,) = ctx.saved_tensors
            return torch.nextafter(grads[0] * out, grads[0] + 1)

    current = Current()
    wrong: Any = OneUlpOff.apply
    some = list(cases(entry, torch.float32, most=1, extra=0, order=1))
    assert compare(some, current).differing == []
    monkeypatch.setattr(Current, "__call__", lambda self, function: _reaching(wrong))
    differing = compare(some, current).differing
    assert [line.partition(" of shape")[0] for line in differing] == ["exp torch.float32 sample 0 function: gradients: result 0"]


def _reaching(function: Any) -> Any:
    """`function`, after one call of a stand-in: the comparison only blames guards that ran."""

    def call(x: torch.Tensor) -> Any:
        torch.exp(torch.zeros(1))
        return function(x)

    return call
