"""Every module of torch.nn in torch's own database gives the same outputs and gradients inside a block as outside."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import pytest
import torch
from torch import nn

import instrument
from tests.instrument.no_harm import databases
from tests.instrument.no_harm.bits import is_finite
from tests.instrument.no_harm.evaluation import Outcome, disagreement, evaluate, seed
from tests.instrument.no_harm.standins import watching

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64]


def _inputs(info: Any, dtype: torch.dtype, training: bool) -> list[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(30)
        return list(info.module_inputs_func(info, device="cpu", dtype=dtype, requires_grad=True, training=training))


def _built(info: Any, sample: Any, dtype: torch.dtype, training: bool) -> nn.Module | None:
    arguments = sample.constructor_input
    seed()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            module: nn.Module = info.module_cls(*arguments.args, **arguments.kwargs).to(dtype)
        except (RuntimeError, TypeError):  # a sample that only other devices take
            return None
    return module.train(training)


def _evaluated(module: nn.Module, sample: Any, order: int) -> Outcome:
    """Outputs and gradients, of the parameters too."""
    module = copy.deepcopy(module)
    arguments = sample.forward_input
    names = [name for name, p in module.named_parameters() if not isinstance(p, nn.parameter.UninitializedTensorMixin)]

    def call(nest: Any) -> Any:
        args, kwargs, parameters = nest
        if isinstance(module, nn.modules.lazy.LazyModuleMixin):
            return module(*args, **kwargs)
        out = torch.func.functional_call(module, parameters, args, kwargs)
        return out, [b for b in module.buffers() if b is not None]

    parameters = {name: dict(module.named_parameters())[name] for name in names}
    return evaluate(call, (arguments.args, arguments.kwargs, parameters), order=order)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_modules_keep_their_bits(dtype: torch.dtype, record_figures: Any) -> None:
    entries = compared = gradients = 0
    reaching: set[str] = set()
    differing: list[str] = []
    work = []
    for info in databases.modules():
        if dtype not in info.dtypes and dtype not in (torch.float16, torch.bfloat16):
            continue
        entries += 1
        for training in (True, False):
            for index, sample in enumerate(_inputs(info, dtype, training)[: 40 if dtype is torch.float32 else 4]):
                module = _built(info, sample, dtype, training)
                if module is None or sample.forward_input is None:
                    continue
                order = 2 if info.supports_gradgrad and dtype in (torch.float32, torch.float64) and training else 1
                work.append((f"{info.name} {dtype} sample {index} training={training}", module, sample, order, _evaluated(module, sample, order)))
    with instrument.stable("1.0.0", profile="guard") as run:
        for label, module, sample, order, before in work:
            known = len(run.events)
            with watching() as reached:
                after = _evaluated(module, sample, order)
            if reached.operations:
                reaching.add(label.partition(" ")[0])
            found = disagreement(before, after, strict=False)
            if found is None and len(run.events) > known and before.finite_levels == len(before.levels) and before.error is None:
                found = f"an alarm about finite numbers: {run.events[known]}"
            if found is not None:
                differing.append(f"{label}: {found}")
            compared += before.finite_levels > 0
            gradients += before.finite_levels > 1
    record_figures(
        f"module_db {dtype}",
        entries=entries,
        that_reach_a_guard=len(reaching),
        calls_compared=compared,
        with_gradients=gradients,
        differing=len(differing),
    )
    assert differing == []
    assert compared > 100
    assert gradients > 50
    assert {"nn.Softmax", "nn.MultiheadAttention"} <= reaching


def test_modules_refuse_the_same_arguments_in_the_same_words(record_figures: Any) -> None:
    def refusal(info: Any, error: Any) -> tuple[str, str] | None:
        sample = error.module_error_input
        seed()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                module = info.module_cls(*sample.constructor_input.args, **sample.constructor_input.kwargs)
                module(*sample.forward_input.args, **sample.forward_input.kwargs)
        except Exception as raised:
            return type(raised).__name__, str(raised)
        return None

    pairs = []
    for info in databases.modules():
        if info.module_error_inputs_func is not None:
            errors = info.module_error_inputs_func(info, device="cpu", dtype=torch.float32, requires_grad=False, training=True)
            pairs += [(info, error) for error in errors]
    plain = [refusal(*pair) for pair in pairs]
    with instrument.stable("1.0.0", profile="guard"):
        guarded = [refusal(*pair) for pair in pairs]
    record_figures("module_db error inputs", compared=len(plain), differing=sum(a != b for a, b in zip(plain, guarded, strict=True)))
    assert plain == guarded
    assert sum(found is not None for found in plain) > 20


def test_a_module_that_is_wrong_by_one_bit_is_found() -> None:
    """Negative control for the comparison of modules."""
    info = next(i for i in databases.modules() if i.module_cls is nn.Softmax)
    sample = _inputs(info, torch.float32, True)[0]
    module = _built(info, sample, torch.float32, True)
    assert module is not None
    before = _evaluated(module, sample, 1)
    module.register_forward_hook(lambda _module, _args, out: torch.nextafter(out, out + 1))
    assert is_finite(before.levels)
    assert disagreement(before, _evaluated(module, sample, 1), strict=False) is not None
