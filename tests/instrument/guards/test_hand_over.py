"""Scripts with a `__torch_function__` of their own: they hear of the functions they know, of nothing else, and their tables find them."""

import sys
import types
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch.overrides import TorchFunctionMode

import instrument

INDEX = torch.zeros(2, dtype=torch.long)
CALLS = {
    "torch.exp": lambda x: torch.exp(x),
    "torch.exp_": lambda x: torch.exp_(x),
    "torch.softmax": lambda x: torch.softmax(x, -1),
    "torch.div": lambda x: torch.div(x, x),
    "torch.mean": lambda x: torch.mean(x),
    "torch.sum": lambda x: torch.sum(input=x),
    "torch.sqrt": lambda x: torch.sqrt(x.abs()),
    "torch.linalg.norm": lambda x: torch.linalg.norm(x),
    "torch.special.exp2": lambda x: torch.special.exp2(x),
    "torch.masked_fill": lambda x: torch.masked_fill(x, x > 0, -1.0),
    "torch.Tensor.exp": lambda x: x.exp(),
    "torch.Tensor.div": lambda x: x / x,
    "torch.Tensor.div_": lambda x: x.div_(x),
    "torch.nn.functional.softplus": lambda x: F.softplus(x),
    "torch.nn.functional.layer_norm": lambda x: F.layer_norm(x, (3,)),
    "torch.nn.functional.cross_entropy": lambda x: F.cross_entropy(x, INDEX),
    "torch.nn.functional.scaled_dot_product_attention": lambda x: F.scaled_dot_product_attention(x, x, x),
}


def known_as(path):
    owner = torch
    for name in path.split(".")[1:]:
        owner = getattr(owner, name)
    return owner


class Recorded(torch.Tensor):
    heard: ClassVar[list] = []

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        cls.heard.append(func)
        return super().__torch_function__(func, types, args, kwargs or {})


class Recording(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.heard = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        self.heard.append(func)
        return func(*args, **(kwargs or {}))


def heard_by_subclass(call):
    x = torch.arange(6.0).view(2, 3).as_subclass(Recorded)
    Recorded.heard = []
    out = call(x)
    return out, Recorded.heard


def heard_by_mode(call):
    x = torch.arange(6.0).view(2, 3)
    with Recording() as mode:
        out = call(x)
    return out, mode.heard


@pytest.mark.parametrize("hear", [heard_by_subclass, heard_by_mode])
@pytest.mark.parametrize("path", CALLS)
def test_a_handler_hears_of_the_function_by_the_object_that_the_script_knows_and_of_nothing_else(path, hear):
    plain, before = hear(CALLS[path])
    assert known_as(path) in before, "negative control: plain torch names it so"
    with instrument.stable(profile="guard"):
        guarded, during = hear(CALLS[path])
        assert known_as(path) in during
    assert [f.__name__ for f in during] == [f.__name__ for f in before]
    assert type(guarded) is type(plain)
    assert torch.equal(guarded, plain) or torch.isnan(plain).any()


def test_the_guard_still_judges_what_the_handler_calls():
    with instrument.stable(profile="guard") as run, Recording():
        out = torch.exp(torch.tensor([1000.0]))
    assert torch.isfinite(out).all()
    assert [e.code for e in run.events] == ["NS201"]


def test_handlers_registered_by_function_before_and_inside_the_block_are_found(monkeypatch):
    # The pattern of torch's own documentation: a table of implementations, keyed by function.
    source = """
import torch
HANDLED = {}
SEEN = {torch.exp}
def implements(function):
    def register(implementation):
        HANDLED[function] = implementation
        return implementation
    return register
class Scalar:
    def __init__(self, value): self.value = value
    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func not in HANDLED: return NotImplemented
        return HANDLED[func](*args, **(kwargs or {}))
@implements(torch.mean)
def mean(x): return x.value
"""
    module = types.ModuleType("handlers_of_a_script")
    exec(source, vars(module))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    originals = (torch.mean, torch.exp, torch.sum)
    module.Scalar.__module__ = module.implements.__module__ = module.__name__
    assert torch.mean(module.Scalar(2.0)) == 2.0
    with instrument.stable(profile="guard"):
        assert torch.mean(module.Scalar(2.0)) == 2.0
        assert torch.exp in module.SEEN
        module.implements(torch.sum)(lambda x: -x.value)
        assert torch.sum(module.Scalar(2.0)) == -2.0
        with pytest.raises(TypeError, match="no implementation"):
            torch.sqrt(module.Scalar(2.0))
    assert list(module.HANDLED) == [originals[0], originals[2]], "keys are the originals again, in their places"
    assert {originals[1]} == module.SEEN
    assert torch.mean(module.Scalar(2.0)) == 2.0
    assert torch.sum(module.Scalar(2.0)) == -2.0


def test_torchs_own_handlers_get_torchs_own_objects():
    torch.set_default_device("meta")
    try:
        with instrument.stable(profile="guard"):
            assert torch.ones(3).exp().device.type == "meta"
            assert torch.exp(torch.ones(3)).device.type == "meta"
    finally:
        torch.set_default_device(None)
    ragged = torch.nested.nested_tensor([torch.ones(2, 4), torch.ones(3, 4)], layout=torch.jagged)
    plain = torch.nn.functional.layer_norm(ragged, (4,)).values()
    with instrument.stable(profile="guard"):
        assert torch.equal(torch.nn.functional.layer_norm(ragged, (4,)).values(), plain)
        assert torch.equal(torch.exp(ragged).values(), torch.exp(ragged.values()))


def test_a_module_imported_inside_the_block_holds_originals_after_it(tmp_path, monkeypatch):
    (tmp_path / "late_arrival.py").write_text(
        "import torch\nfrom torch import exp\nclass Layer:\n    act = staticmethod(torch.log)\nTABLE = {torch.sqrt: 1, 'f': torch.exp}\n",
        encoding="utf-8",
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    originals = (torch.exp, torch.log, torch.sqrt)
    with instrument.stable(profile="guard"):
        import late_arrival

        assert late_arrival.exp is not originals[0], "negative control"
    try:
        assert late_arrival.exp is originals[0]
        assert late_arrival.Layer.act is originals[1]
        assert late_arrival.TABLE == {originals[2]: 1, "f": originals[0]}
    finally:
        del sys.modules["late_arrival"]


def test_a_submodule_of_torch_imported_inside_the_block_holds_originals_after_it(monkeypatch):
    name = "torch.late_submodule_of_a_test"
    original = torch.exp
    module = types.ModuleType(name)
    with instrument.stable(profile="guard"):
        exec("import torch\nfrom torch import exp\nTABLE = {torch.exp: 'exp'}", vars(module))
        monkeypatch.setitem(sys.modules, name, module)
    assert module.exp is original
    assert list(module.TABLE) == [original]


class Counting(TorchFunctionMode):
    """Counts every call by its name."""

    def __init__(self):
        super().__init__()
        self.heard = {}

    def __torch_function__(self, function, types, args=(), kwargs=None):
        name = getattr(function, "__name__", str(function))
        self.heard[name] = self.heard.get(name, 0) + 1
        return function(*args, **(kwargs or {}))


def heard_in_training(make):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Softplus(), torch.nn.Linear(8, 3))
    optimizer = make(net.parameters())
    x, y = torch.randn(12, 4), torch.randint(0, 3, (12,))

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        return loss

    with Counting() as mode:
        for _ in range(3):
            optimizer.step(closure) if make is with_closure else (closure(), optimizer.step())
    return mode.heard, [p.detach().clone() for p in net.parameters()]


def momentum(parameters):
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9)


def with_closure(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


def test_a_mode_of_the_scripts_own_hears_of_the_steps_and_not_of_what_is_read_to_judge_them():
    plain, before = heard_in_training(momentum)
    with instrument.stable(profile="guard") as run:
        guarded, after = heard_in_training(momentum)
    assert plain["add_"] > 0
    assert plain["__get__"] > 0
    assert guarded == plain
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert run.tally.steps == 3


def test_the_forward_pass_inside_a_closure_is_heard_too():
    plain, _ = heard_in_training(with_closure)
    with instrument.stable(profile="guard"):
        guarded, _ = heard_in_training(with_closure)
    assert guarded["cross_entropy"] == plain["cross_entropy"] == 3
