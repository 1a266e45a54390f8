"""torch's operator database through plain and guarded torch: the same samples, the same seeds, bit for bit."""

from __future__ import annotations

import contextlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import instrument
from tests.instrument.no_harm.bits import is_finite, tensors
from tests.instrument.no_harm.evaluation import Outcome, disagreement, evaluate
from tests.instrument.no_harm.standins import Current, watching

Call = Callable[[Any], Any]


RUNS_OF_ITSELF = 20
"""How often a plain call is repeated before it counts as one that always gives the same: lstsq differs from itself in one of six."""


@dataclass
class Figures:
    """What a sweep has found."""

    entries: int = 0
    reaching: list[str] = field(default_factory=list)
    samples: int = 0
    compared: int = 0
    gradients: int = 0
    second_gradients: int = 0
    errors: int = 0
    differing: list[str] = field(default_factory=list)
    undetermined: list[str] = field(default_factory=list)

    def __iadd__(self, other: Figures) -> Figures:
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


@dataclass(frozen=True)
class Case:
    """One call of one spelling of an operator on one sample: `call` gets the function that stands there now."""

    entry: str
    label: str
    function: Callable[..., Any]
    call: Callable[[Callable[..., Any], Any], Any]
    args: Any
    order: int


def _plain_call(processed: Callable[[Any], Any]) -> Callable[[Callable[..., Any], Any], Any]:
    return lambda function, args: processed(function(args[0], *args[1], **args[2]))


def _inplace_call(processed: Callable[[Any], Any]) -> Callable[[Callable[..., Any], Any], Any]:
    def call(function: Callable[..., Any], args: Any) -> Any:
        # A leaf that needs a gradient cannot be written into; a script writes into what it computed from one.
        x = args[0].clone() if isinstance(args[0], Tensor) else [t.clone() for t in args[0]]
        return processed(function(x, *args[1], **args[2]))

    return call


def _out_call(function: Callable[..., Any], args: Any) -> Any:
    with torch.no_grad():
        shapes = function(args[0], *args[1], **args[2])
        out = torch.zeros_like(shapes) if isinstance(shapes, Tensor) else tuple(torch.zeros_like(x) for x in shapes)
        return function(args[0], *args[1], **args[2], out=out), out


def _variants(entry: Any, extra: bool) -> Iterator[tuple[str, Callable[..., Any]]]:
    yield "function", entry.get_op()
    if not extra:
        return
    named = [("method", entry.get_method()), ("operator", entry.get_operator())]
    named += [("in-place", entry.get_inplace()), ("in-place operator", entry.get_inplace_operator())]
    for alias in entry.aliases:
        named += [(f"alias {alias.name}", alias.op), (f"alias {alias.name} method", alias.method_variant)]
        named += [(f"alias {alias.name} in-place", alias.inplace_variant)]
    for label, function in named:
        if callable(function):
            yield label, function


def cases(entry: Any, dtype: torch.dtype, *, most: int, extra: int, order: int) -> Iterator[Case]:
    """The calls of one entry: its first `most` samples as a function with gradients, the first `extra` in its other spellings too."""
    grad = entry.supports_autograd and dtype in entry.supported_backward_dtypes("cpu")
    order = 0 if not grad else order if entry.supports_gradgrad else min(order, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        samples = list(itertools.islice(entry.sample_inputs("cpu", dtype, requires_grad=grad), most))
    for index, sample in enumerate(samples):
        args = (sample.input, sample.args, sample.kwargs)
        for label, function in _variants(entry, index < extra):
            call = _inplace_call if "in-place" in label else _plain_call
            yield Case(entry.formatted_name, f"{dtype} sample {index} {label}", function, call(sample.output_process_fn_grad), args, order)
        if entry.supports_out and index < extra:
            yield Case(entry.formatted_name, f"{dtype} sample {index} out=", entry.get_op(), _out_call, args, 0)


def is_strict(case: Case) -> bool:
    """No guard looks at integers, bools or complex numbers, so there even what is not finite stays to the bit."""
    found = tensors(case.args)
    return bool(found) and not any(x.is_floating_point() for x in found)


def compare(all_cases: list[Case], current: Current, profile: str = "guard") -> Figures:
    """Every case plain, then every case inside one block."""
    figures = Figures()
    plain = [evaluate(lambda args, case=case: case.call(case.function, args), case.args, order=case.order) for case in all_cases]
    reaching = set()
    with contextlib.ExitStack() as block:
        run = block.enter_context(instrument.stable(profile=profile))
        for case, before in zip(all_cases, plain, strict=True):
            events = len(run.events)
            with watching() as reached:
                after = evaluate(lambda args, case=case: case.call(current(case.function), args), case.args, order=case.order)
            if reached.operations:
                reaching.add(case.entry)
            figures += _judged(case, before, after, [str(e) for e in run.events[events:]], reached=reached.count > 0)
            if before.finite_levels < len(before.levels):
                # It failed, all calls come from one line, and that is looked into and guarded more tightly from now on: the next is another script.
                block.close()
                run = block.enter_context(instrument.stable(profile=profile))
    figures.entries = len({case.entry for case in all_cases})
    figures.reaching += sorted(reaching)
    return figures


def _judged(case: Case, before: Outcome, after: Outcome, events: list[str], *, reached: bool) -> Figures:
    strict = is_strict(case)
    finite = before.finite_levels
    counted = len(before.levels) if strict else finite
    figures = Figures(
        samples=1, compared=int(counted > 0), gradients=int(counted > 1), second_gradients=int(counted > 2), errors=int(before.error is not None)
    )
    found = disagreement(before, after, strict=strict)
    if found is None and events and finite == len(before.levels) and before.error is None and is_finite(case.args):
        found = f"an alarm about finite numbers: {events[0]}"
    if found is None:
        return figures
    # Some kernels read memory that nobody wrote (lstsq): a call in which no guard took part, or that differs from itself, says nothing about guards.
    again = (evaluate(lambda args: case.call(case.function, args), case.args, order=case.order) for _ in range(RUNS_OF_ITSELF))
    if not reached or any(disagreement(before, repeated, strict=strict) is not None for repeated in again):
        figures.undetermined.append(f"{case.entry} {case.label}")
    else:
        figures.differing.append(f"{case.entry} {case.label}: {found}")
    return figures


def has_values(entry: Any) -> bool:
    """False for what returns memory that nobody wrote."""
    return "empty" not in entry.name


def sweep(entries: list[Any], dtype: torch.dtype, *, most: int, extra: int, order: int = 2) -> Figures:
    """`compare` over all entries that know `dtype`."""
    all_cases: list[Case] = []
    for entry in entries:
        if has_values(entry) and dtype in entry.supported_dtypes("cpu"):
            # Twenty seconds for thirty samples, of one kernel that no guard comes near.
            limit = min(most, 2) if entry.name == "grid_sampler_3d" else most
            all_cases += cases(entry, dtype, most=limit, extra=extra, order=order)
    return compare(all_cases, Current())


def refusals(entries: list[Any]) -> Figures:
    """Inputs that must raise: the same type and message inside a block as outside."""
    all_cases: list[Case] = []
    call = _plain_call(lambda out: out)
    for entry in entries:
        if entry.error_inputs_func is None:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            samples = [e.sample_input for e in entry.error_inputs("cpu")]
        for index, sample in enumerate(samples):
            for label, function in _variants(entry, extra=True):
                args = (sample.input, sample.args, sample.kwargs)
                all_cases.append(Case(entry.formatted_name, f"error input {index} {label}", function, call, args, 0))
    return compare(all_cases, Current())
