"""Every optimizer, in every setting of torch's own database, makes the same steps inside a block as outside."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import instrument
from tests.instrument.no_harm import databases
from tests.instrument.no_harm.bits import difference

Make = Callable[[list[nn.Parameter]], torch.optim.Optimizer]

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torch_optimizer

STEPS = 4


def _parameters(dtype: torch.dtype, *, flat_too: bool) -> list[nn.Parameter]:
    torch.manual_seed(40)
    shapes = [(6, 4), (4, 3)] + ([(4,), (3,)] if flat_too else [])
    return [nn.Parameter(torch.randn(shape, dtype=dtype)) for shape in shapes]


def _trained(make: Make, dtype: torch.dtype, *, flat_too: bool = True, sparse: bool = False, closure: bool = False) -> Any:
    """Parameters, state and what `step` returned, after a few steps on a small problem."""
    parameters = _parameters(dtype, flat_too=flat_too)
    optimizer = make(parameters)
    target = torch.linspace(-1, 1, 18, dtype=torch.float64).reshape(6, 3).to(dtype)
    returned = []

    def loss_and_gradients() -> Tensor:
        optimizer.zero_grad()
        w, v = parameters[0], parameters[1]
        hidden = w if not flat_too else w + parameters[2]
        out = hidden @ v if not flat_too else hidden @ v + parameters[3]
        loss = ((out - target).abs() ** 2).mean().real
        loss.backward(create_graph=create_graph)
        if sparse:
            for p in parameters:
                assert p.grad is not None
                p.grad = p.grad.detach().to_sparse(1)
        return loss

    create_graph = type(optimizer).__name__ in ("Adahessian",)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for _ in range(STEPS):
            if closure:
                returned.append(optimizer.step(loss_and_gradients))
            else:
                loss_and_gradients()
                with torch.enable_grad():
                    returned.append(optimizer.step())
    state = copy.deepcopy({k: v for k, v in optimizer.state_dict()["state"].items()})
    return [p.detach().clone() for p in parameters], state, [r.detach() if isinstance(r, Tensor) else r for r in returned]


def _outcome(make: Make, dtype: torch.dtype, **options: bool) -> Any:
    try:
        return _trained(make, dtype, **options)
    except Exception as error:  # the same error is expected then
        return type(error).__name__, str(error)


def _settings(info: Any) -> list[tuple[str, Make, dict[str, bool]]]:
    found = []
    for setting in databases.optimizer_settings(info):

        def make(parameters: list[nn.Parameter], kwargs: dict[str, Any] = setting.kwargs) -> torch.optim.Optimizer:
            optimizer: torch.optim.Optimizer = info.optim_cls(parameters, **copy.deepcopy(kwargs))
            return optimizer

        options = {"flat_too": info.name != "Muon", "closure": info.step_requires_closure, "sparse": info.only_supports_sparse_grads}
        found.append((f"{info.name} {setting.desc} {setting.kwargs}", make, options))
        if info.supports_sparse and not setting.kwargs.get("differentiable"):
            found.append((f"{info.name} {setting.desc} {setting.kwargs} sparse", make, {**options, "sparse": True}))
    return found


DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.complex64]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_optimizers_make_the_same_steps(dtype: torch.dtype, record_figures: Any) -> None:
    entries, differing, alarms, stepped = 0, [], [], 0
    for info in databases.optimizers():
        if dtype.is_complex and not info.supports_complex:
            continue
        settings = _settings(info)[:: 1 if dtype is torch.float32 else 4]
        entries += 1
        plain = [_outcome(make, dtype, **options) for _, make, options in settings]
        with instrument.stable("1.0.0", profile="guard") as run:
            guarded = [_outcome(make, dtype, **options) for _, make, options in settings]
        alarms += [f"{info.name}: {event}" for event in run.events]
        for (label, _, _), before, after in zip(settings, plain, guarded, strict=True):
            found = difference(before, after)
            stepped += not isinstance(before[0], str)
            if found is not None:
                differing.append(f"{label}: {found}" + (f" {before} {after}" if isinstance(before[0], str) or isinstance(after[0], str) else ""))
    record_figures(f"optim_db {dtype}", entries=entries, settings_compared=stepped, differing=len(differing), events=len(alarms))
    assert differing == []
    assert alarms == []
    assert stepped >= entries


def _third_party() -> list[str]:
    return sorted(
        name
        for name, cls in vars(torch_optimizer).items()
        if inspect.isclass(cls) and issubclass(cls, torch.optim.Optimizer) and cls is not torch.optim.Optimizer and name not in ("Lookahead",)
    )


def test_optimizers_of_torch_optimizer_make_the_same_steps(record_figures: Any) -> None:
    names = _third_party()

    def run_all() -> list[Any]:
        return [_outcome(lambda p, name=name: getattr(torch_optimizer, name)(p, lr=1e-3), torch.float32, closure=name == "SGDW") for name in names]

    def lookahead() -> Any:
        return _outcome(lambda p: torch_optimizer.Lookahead(torch_optimizer.Yogi(p, lr=1e-2), k=2), torch.float32)

    plain, plain_ahead = run_all(), lookahead()
    with instrument.stable("1.0.0", profile="guard") as run:
        guarded, ahead = run_all(), lookahead()
    differing = [f"{name}: {difference(a, b)}" for name, a, b in zip(names, plain, guarded, strict=True) if difference(a, b) is not None]
    stepped = [name for name, found in zip(names, plain, strict=True) if not isinstance(found[0], str)]
    record_figures("torch-optimizer", classes=len(names) + 1, stepped=len(stepped) + 1, differing=len(differing), events=len(run.events))
    assert differing == []
    assert difference(plain_ahead, ahead) is None
    assert run.events == ()
    assert len(stepped) >= 25, [found for found in plain if isinstance(found[0], str)]


def test_optimizers_refuse_the_same_arguments_in_the_same_words(record_figures: Any) -> None:
    def refusal(info: Any, error: Any) -> tuple[str, str] | None:
        setting = error.optimizer_error_input
        torch.manual_seed(41)
        parameters = setting.params if setting.params is not None else [nn.Parameter(torch.randn(2, 2))]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error" if error.error_type is UserWarning else "ignore")
                optimizer = info.optim_cls(parameters, **setting.kwargs)
                optimizer.step()
        except Exception as raised:
            return type(raised).__name__, str(raised)
        return None

    pairs = [
        (i, e) for i in databases.optimizers() if i.optim_error_inputs_func for e in i.optim_error_inputs_func(device="cpu", dtype=torch.float32)
    ]
    plain = [refusal(*pair) for pair in pairs]
    with instrument.stable("1.0.0", profile="guard"):
        guarded = [refusal(*pair) for pair in pairs]
    record_figures("optim_db error inputs", compared=len(plain), differing=sum(a != b for a, b in zip(plain, guarded, strict=True)))
    assert plain == guarded
    assert sum(found is not None for found in plain) > 50


def test_hooks_schedulers_and_state_see_the_steps_that_they_see_outside() -> None:
    def history() -> list[Any]:
        torch.manual_seed(42)
        p = nn.Parameter(torch.randn(5))
        optimizer = torch.optim.Adam([p], lr=0.1)
        seen: list[Any] = []
        optimizer.register_step_pre_hook(lambda _o, args, kwargs: seen.append(("pre", args[1:], kwargs)))
        optimizer.register_step_post_hook(lambda _o, args, kwargs: seen.append(("post", args[1:], kwargs)))
        optimizer.register_state_dict_pre_hook(lambda _o: seen.append("state"))
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.2, total_steps=6)
        for _ in range(5):
            optimizer.zero_grad()
            p.square().sum().backward()
            optimizer.step()
            scheduler.step()
            seen.append((scheduler.get_last_lr(), optimizer.state_dict()["state"][0]["step"].item(), p.tolist()))
        return seen

    plain = history()
    with instrument.stable("1.0.0", profile="guard"):
        assert history() == plain
    assert plain.count("state") == 5


class _Sam(torch.optim.Optimizer):
    """A user's own optimizer with a base optimizer and two gradients a step, as sharpness-aware minimisation is commonly written."""

    def __init__(self, parameters: Any, rho: float = 0.05) -> None:
        super().__init__(parameters, {"rho": rho})
        self.base = torch.optim.SGD(self.param_groups, lr=0.1)

    def step(self, closure: Any = None) -> Any:  # type: ignore[override]
        with torch.enable_grad():
            loss = closure()
        norm = torch.norm(torch.stack([p.grad.norm() for g in self.param_groups for p in g["params"]]))
        moves = []
        with torch.no_grad():
            for group in self.param_groups:
                for p in group["params"]:
                    moves.append(p.grad * (group["rho"] / (norm + 1e-12)))
                    p.add_(moves[-1])
        with torch.enable_grad():
            closure()
        with torch.no_grad():
            for p, move in zip([p for g in self.param_groups for p in g["params"]], moves, strict=True):
                p.sub_(move)
        self.base.step()
        return loss


def test_a_users_own_optimizer_with_closures_and_a_base_optimizer_makes_the_same_steps() -> None:
    plain = _trained(lambda p: _Sam(p), torch.float32, closure=True)
    with instrument.stable("1.0.0", profile="guard") as run:
        guarded = _trained(lambda p: _Sam(p), torch.float32, closure=True)
    assert difference(plain, guarded) is None
    assert run.events == ()
