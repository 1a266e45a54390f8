"""Undo is by identity: the very objects are back, inherited attributes included, whatever happened inside."""

import functools
import threading
import types

import pytest
import torch
import torch.nn.functional as F
from torch import exp, nn

import instrument
from tests.instrument.patched import differences, photograph

HOT = torch.tensor([1.0, 200.0])


@pytest.fixture(autouse=True)
def _torch_is_the_same_afterwards():
    torch.optim.SGD([torch.zeros(1)])  # lets torch import what building an optimizer imports
    before = photograph()
    yield
    assert differences(before) == []
    assert not instrument.session.open_runs()


def test_exp_is_guarded_inside_and_the_original_outside():
    original = torch.exp
    assert torch.isinf(torch.exp(HOT)[1]), "negative control"
    with instrument.stable():
        assert torch.exp is not original
        assert torch.isfinite(torch.exp(HOT)).all()
    assert torch.exp is original
    assert torch.isinf(torch.exp(HOT)[1])


def test_restored_after_an_exception():
    with pytest.raises(KeyError), instrument.stable():
        raise KeyError("the user's own")
    assert torch.isinf(torch.exp(HOT)[1])


def test_nested_blocks_restore_at_the_last_exit_and_the_inner_config_rules_inside():
    with instrument.stable(profile="train") as outer:
        with instrument.stable(profile="observe") as inner:
            assert torch.isinf(torch.exp(HOT)[1]), "observe alters nothing"
        assert torch.isfinite(torch.exp(HOT)).all()
    assert [e.action for e in inner.events] == ["observed"]
    assert [e.action for e in outer.events] == ["bounded"]


def test_one_object_entered_twice():
    block = instrument.stable()
    with block as first, block as second:
        assert first is not second
        assert torch.isfinite(torch.exp(HOT)).all()
    with block:
        assert torch.isfinite(HOT.exp()).all()


def test_adamw_step_is_inherited_before_and_after():
    had_own_step = "step" in vars(torch.optim.AdamW)
    with instrument.stable():
        assert torch.optim.AdamW.step is not None
    assert ("step" in vars(torch.optim.AdamW)) == had_own_step


def test_class_defined_inside_is_guarded_and_left_as_torch_would_leave_it():
    with instrument.stable() as run:

        class Plain(torch.optim.Optimizer):
            def __init__(self, params):
                super().__init__(params, {"lr": 0.1})

            def step(self, closure=None):
                for group in self.param_groups:
                    for p in group["params"]:
                        p.data.add_(p.grad, alpha=-group["lr"])

        parameter = nn.Parameter(torch.ones(2))
        optimizer = Plain([parameter])
        parameter.grad = torch.tensor([1.0, torch.nan])
        optimizer.step()
        assert torch.equal(parameter.detach(), torch.ones(2))
    assert [e.code for e in run.events] == ["NS506"]
    assert Plain.step.hooked, "step hooks work afterwards as torch arranged them"
    optimizer.step()
    assert torch.isnan(parameter[1]), "outside the block nothing is guarded"


def test_step_hooks_of_an_instance_built_inside_work_afterwards():
    class Fresh(torch.optim.SGD):
        def step(self, closure=None):
            return None

    raw = vars(Fresh)["step"]
    with instrument.stable():
        optimizer = Fresh([nn.Parameter(torch.ones(1))], lr=0.1)
    assert vars(Fresh)["step"] is raw
    calls = []
    optimizer.register_step_post_hook(lambda *a: calls.append("post"))
    optimizer.step()
    assert calls == ["post"]


def test_somebody_else_patched_on_top(caplog):
    original = torch.exp
    with instrument.stable() as run:
        inner = torch.exp
        torch.exp = lambda x: inner(x)
    assert torch.exp is original
    assert run.foreign_patches == ("torch.exp",)
    assert "torch.exp" in caplog.text


def test_a_stand_in_that_somebody_kept_calls_through_afterwards():
    with instrument.stable():
        kept = torch.exp
    assert torch.isinf(kept(HOT)[1])


# Names bound before the block -----------------------------------------------------------------------------------------


class Holder:
    act = torch.exp
    static = staticmethod(torch.exp)
    table = {"exp": torch.exp, "list": [torch.exp]}  # noqa: RUF012


def by_default(x, act=torch.exp, *, other=exp):
    return act(x) + 0 * other(x.clamp(max=1))


def make_closure(function):
    def closure(x):
        return function(x)

    return closure


closure = make_closure(torch.exp)
bound = functools.partial(torch.exp)
TABLE = {"exp": torch.exp}
LIST = [torch.exp]


class Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.act = torch.exp

    def forward(self, x):
        return self.act(x)


MODEL = Model()

WAYS = {
    "from torch import exp": lambda x: exp(x),
    "class attribute": lambda x: Holder().act(x),
    "static method": lambda x: Holder.static(x),
    "table in a class": lambda x: Holder.table["exp"](x),
    "default argument": by_default,
    "closure cell": lambda x: closure(x),
    "partial": lambda x: bound(x),
    "module table": lambda x: TABLE["exp"](x),
    "module list": lambda x: LIST[0](x),
    "model attribute": lambda x: MODEL(x),
    "method": lambda x: x.exp(),
    "in place": lambda x: x.clone().exp_(),
    "in place function": lambda x: torch.exp_(x.clone()),
    "out": lambda x: torch.exp(x, out=torch.empty(2)),
    "keyword": lambda x: torch.exp(input=x),
}


@pytest.mark.parametrize("way", WAYS)
def test_names_bound_earlier_are_guarded_and_bound_back(way):
    call = WAYS[way]
    assert torch.isinf(call(HOT)[1]), "negative control"
    with instrument.stable():
        assert torch.isfinite(call(HOT)).all(), way
    assert torch.isinf(call(HOT)[1]), way
    assert exp is torch.exp
    assert Holder.act is torch.exp
    assert by_default.__defaults__ == (torch.exp,)


def test_a_local_name_kept_to_compare_with_stays_the_original():
    original, table = torch.exp, {"act": torch.exp}
    with instrument.stable():
        assert torch.exp is not original
        assert torch.isinf(original(HOT)[1])
        assert torch.isfinite(table["act"](HOT)).all()
    assert table["act"] is original


def test_model_in_a_local_variable_of_a_caller():
    model = Model()

    def train():
        with instrument.stable():
            return model(HOT)

    assert torch.isfinite(train()).all()
    assert model.act is torch.exp


def test_module_imported_inside_is_bound_back(monkeypatch):
    import sys

    with instrument.stable():
        late = types.ModuleType("late_module")
        exec("from torch import exp\nimport torch", late.__dict__)
        monkeypatch.setitem(sys.modules, "late_module", late)
        assert torch.isfinite(late.exp(HOT)).all()
    assert late.exp is torch.exp


def test_guards_cover_other_threads_while_a_block_is_open():
    results = []
    with instrument.stable():
        thread = threading.Thread(target=lambda: results.append(torch.isfinite(torch.exp(HOT)).all().item()))
        thread.start()
        thread.join()
    assert results == [True]


def test_the_last_thread_to_leave_restores():
    original = torch.exp
    inside, leave = threading.Event(), threading.Event()

    def other():
        with instrument.stable():
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with instrument.stable():
        thread.start()
        assert inside.wait(10)
    assert torch.exp is not original
    leave.set()
    thread.join()
    assert torch.exp is original


def test_functional_softmax_is_reached_through_the_method():
    row = torch.full((1, 3), -torch.inf)
    assert torch.isnan(F.softmax(row, -1)).all(), "negative control"
    with instrument.stable():
        assert torch.equal(F.softmax(row, -1), torch.zeros(1, 3))
        assert torch.equal(nn.Softmax(-1)(row), torch.zeros(1, 3))
