"""What a user types: names, key=value arguments, and what is said where they do not fit."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import nn

from latent_drift.errors import UsageError
from latent_drift.training import optimizers, schedules
from latent_drift.training.arguments import parse, require_fit, typed
from latent_drift.training.names import did_you_mean, nearest


def parameters() -> list[nn.Parameter]:
    return list(nn.Linear(3, 2).parameters())


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("-0.5", -0.5),
        ("(0.9, 0.99)", (0.9, 0.99)),
        ("[5,12]", [5, 12]),
        ("True", True),
        ("false", False),
        ("none", None),
        ("'text'", "text"),
        ("cos", "cos"),
        ("__import__('os')", "__import__('os')"),
        ("a b", "a b"),
    ],
)
def test_values_are_typed_by_their_literal(text: str, value: Any) -> None:
    assert typed(text) == value
    assert type(typed(text)) is type(value)


def test_assignments_are_parsed_once_each() -> None:
    assert parse(["lr=1e-4", "betas=(0.9,0.99)", "name=a=b"], "--opt") == {"lr": 1e-4, "betas": (0.9, 0.99), "name": "a=b"}
    for wrong in ("lr", "=3", "l r=3", ""):
        with pytest.raises(UsageError, match=r"--opt expects key=value.*got "):
            parse([wrong], "--opt")
    with pytest.raises(UsageError, match=r"--opt lr is given twice: 1 and 2"):
        parse(["lr=1", "lr=2"], "--opt")


def test_the_nearest_names_come_first() -> None:
    assert nearest("adamw", optimizers.catalogue())[0] == "AdamW"
    assert nearest("Sgd", ["Adam", "SGD"]) == ["SGD"]
    assert "CosineAnnealingLR" in nearest("cosine", schedules.names())
    assert nearest("zzz", ["Adam"]) == []
    assert did_you_mean("zzz", ["Adam", "SGD"]) == "Known: Adam, SGD."


def test_arguments_have_to_fit_a_signature() -> None:
    def make(params: Any, lr: float, betas: Any = (0.9, 0.99), **rest: Any) -> None: ...

    require_fit("f", "--opt", make, {"lr": 1}, supplied=["params"])
    with pytest.raises(UsageError, match=r"--opt beta: f has no such argument. Did you mean betas\?\n  its arguments: lr, betas=\(0.9, 0.99\)"):
        require_fit("f", "--opt", make, {"lr": 1, "beta": 2}, supplied=["params"])
    with pytest.raises(UsageError, match=r"--opt params: f has no such argument"):
        require_fit("f", "--opt", make, {"lr": 1, "params": 2}, supplied=["params"])
    with pytest.raises(UsageError, match=r"f needs lr: add --opt lr=VALUE"):
        require_fit("f", "--opt", make, {}, supplied=["params"])


def test_every_optimizer_of_both_packages_is_offered_or_refused_with_a_reason() -> None:
    import inspect

    import torch_optimizer

    def of(module: Any, names: Any) -> set[str]:
        kinds = {name: getattr(module, name) for name in names}
        return {name for name, kind in kinds.items() if inspect.isclass(kind) and issubclass(kind, torch.optim.Optimizer)} - {"Optimizer"}

    offered = {name.removeprefix(optimizers.SECOND_PACKAGE) for name in optimizers.catalogue()}
    assert offered | set(optimizers.UNSUITABLE) == of(torch.optim, vars(torch.optim)) | of(torch_optimizer, torch_optimizer.__all__)
    assert not offered & set(optimizers.UNSUITABLE)


@pytest.mark.parametrize("name", optimizers.UNSUITABLE)
def test_an_unsuitable_optimizer_says_why(name: str) -> None:
    with pytest.raises(UsageError, match=rf"--optimizer {name.lower()}: {name} cannot train here: it .*\. Take another"):
        optimizers.canonical_name(name.lower())


@pytest.mark.parametrize(
    ("given", "name", "module"),
    [
        ("adamw", "AdamW", "torch.optim"),
        ("torch.optim.SGD", "SGD", "torch.optim"),
        ("RAdam", "RAdam", "torch.optim"),
        ("torch_optimizer.RAdam", "torch_optimizer.RAdam", "torch_optimizer"),
        ("torch_optimizer.lamb", "Lamb", "torch_optimizer"),
        ("LAMB", "Lamb", "torch_optimizer"),
    ],
)
def test_names_in_any_case_and_of_either_package(given: str, name: str, module: str) -> None:
    assert optimizers.canonical_name(given) == name
    assert type(optimizers.build(given, {}, parameters())).__module__.startswith(module)


def test_a_name_of_one_package_is_not_found_in_the_other() -> None:
    for wrong in ("torch_optimizer.AdamW", "Adamm", ""):
        with pytest.raises(UsageError, match=r"neither torch\.optim nor torch-optimizer has it"):
            optimizers.canonical_name(wrong)


def test_values_that_an_optimizer_refuses_are_told_with_its_reason() -> None:
    with pytest.raises(UsageError, match=r"--optimizer AdamW with lr=-1: Invalid learning rate: -1"):
        optimizers.build("AdamW", {"lr": -1}, parameters())
    for name, argument, value in (
        ("SGD", "momentum", -1),
        ("AdamW", "betas", (2, 3)),
        ("AdamW", "capturable", True),
        ("Adagrad", "differentiable", True),
    ):
        with pytest.raises(UsageError, match=rf"--optimizer {name} with {argument}="):
            optimizers.build(name, {argument: value}, parameters())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lr=nan", "--opt lr must be finite; got nan"),
        ("lr=-inf", "--opt lr must be finite; got -inf"),
        ("weight_decay=1e400", "--opt weight_decay must be finite; got inf"),
        ("lr=fast", "--opt lr of optimizer AdamW expects a number, such as 0.001; got 'fast'"),
        ("lr=True", "--opt lr of optimizer AdamW expects a number, such as 0.001; got True"),
        ("lr=none", "--opt lr of optimizer AdamW expects a number, such as 0.001; got None"),
        ("betas=0.9", "--opt betas of optimizer AdamW expects 2 numbers, such as (0.9,0.999); got 0.9"),
        ("betas=(0.9,)", "--opt betas of optimizer AdamW expects 2 numbers, such as (0.9,0.999); got (0.9,)"),
        ("betas=(0.9,nan)", "--opt betas of optimizer AdamW expects 2 numbers, such as (0.9,0.999); got '(0.9,nan)'"),
        ("betas=(0.9,1e999)", "--opt betas must be finite; got (0.9, inf)"),
        ("amsgrad=maybe", "--opt amsgrad of optimizer AdamW expects True or False; got 'maybe'"),
        ("foreach=maybe", "--opt foreach of optimizer AdamW expects True, False or none; got 'maybe'"),
    ],
)
def test_a_value_of_another_kind_is_told_with_what_is_expected(text: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        optimizers.build("AdamW", parse([text], "--opt"), parameters())
    assert str(caught.value) == message


@pytest.mark.parametrize("text", ["lr=1e-4", "lr=1", "betas=[0.8,0.9]", "amsgrad=true", "amsgrad=1", "foreach=none", "foreach=False"])
def test_a_value_of_the_kind_is_taken(text: str) -> None:
    assert optimizers.build("AdamW", parse([text], "--opt"), parameters()).param_groups


@pytest.mark.parametrize("catalogue", [optimizers.catalogue, schedules.catalogue])
def test_every_default_is_a_value_that_may_be_given(catalogue: Any) -> None:
    def is_refused(name: str, kind: Any, **other: Any) -> bool:
        parameters = inspect.signature(kind).parameters
        given = {key: p.default for key, p in parameters.items() if p.default is not p.empty}
        supplied = [key for key, p in parameters.items() if p.default is p.empty]
        try:
            require_fit(name, "--opt", kind, given | other, supplied)
        except UsageError:
            return True
        return False

    kinds = catalogue()
    assert len(kinds) > 5
    assert [name for name, kind in kinds.items() if is_refused(name, kind)] == []
    assert all(is_refused(name, kind, no_such_argument=1) for name, kind in kinds.items()), "negative control"


def test_schedules_are_laid_out_over_the_run_where_they_have_a_length() -> None:
    optimizer = torch.optim.SGD(parameters(), lr=1.0)
    schedule = schedules.Schedule("cosineannealinglr", {}, optimizer, steps=10)
    rates = []
    for _ in range(10):
        rates.append(schedule.rate)
        optimizer.step()
        schedule.advance(1.0)
    expected = [0.5 * (1 + math.cos(math.pi * step / 10)) for step in range(10)]
    assert rates == pytest.approx(expected, abs=1e-12)
    assert schedules.follows_length("CosineAnnealingLR", {})
    assert not schedules.follows_length("CosineAnnealingLR", {"T_max": 4})
    assert not schedules.follows_length("warmup-cosine", {})


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("StepLR", {}, r"schedule StepLR needs step_size: add --sched step_size=VALUE"),
        ("StepLR", {"size": 3}, r"--sched size: schedule StepLR has no such argument. Did you mean step_size\?"),
        ("constant", {"gamma": 1}, r"--sched gamma: the schedule constant has no arguments"),
        ("ExponentialLR", {"gamma": "x"}, r"--sched gamma of schedule ExponentialLR expects a number; got 'x'"),
        ("MultiStepLR", {"milestones": "abc"}, r"--sched milestones .* expects a value of the kind '?Iterable\[int\]'?; got 'abc'"),
        ("MultiStepLR", {"milestones": 3}, r"--scheduler MultiStepLR with milestones=3: .*not iterable"),
        ("ReduceLROnPlateau", {"mode": 3}, r"--sched mode .* expects a word, such as min; got 3"),
        ("StepLR", {"step_size": 2, "gamma": math.nan}, r"--sched gamma must be finite; got nan"),
        ("LambdaLR", {}, r"--scheduler LambdaLR: no such schedule"),
        ("CosineAnnealingLR", {"last_epoch": 3}, r"--sched last_epoch: .* has no such argument"),
    ],
)
def test_a_schedule_that_cannot_be_built_says_why(name: str, arguments: dict[str, Any], message: str) -> None:
    optimizer = torch.optim.SGD(parameters(), lr=1.0)
    with pytest.raises(UsageError, match=message):
        schedules.Schedule(name, arguments, optimizer, 10)


def test_one_cycle_without_momentum_says_what_to_add() -> None:
    optimizer = torch.optim.Adagrad(parameters(), lr=1.0)
    with pytest.raises(UsageError, match=r"Add --sched cycle_momentum=False"):
        schedules.Schedule("OneCycleLR", {}, optimizer, 10)
    schedules.Schedule("OneCycleLR", {"cycle_momentum": False}, optimizer, 10)


def test_an_optimizer_without_a_rate_has_only_the_constant_schedule() -> None:
    optimizer = optimizers.build("A2GradExp", {}, parameters())
    with pytest.raises(UsageError, match=r"the optimizer A2GradExp has no learning rate to schedule; add --scheduler constant"):
        schedules.Schedule("warmup-cosine", {}, optimizer, 10)
    assert math.isnan(schedules.Schedule("constant", {}, optimizer, 10).rate)
