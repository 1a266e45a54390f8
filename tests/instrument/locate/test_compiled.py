"""After a failure the report names the functions that ran as compiled code; where nothing failed or nothing was compiled it says nothing."""

import inspect
import json
import subprocess
import sys

import pytest
import torch
from torch import nn

import instrument
from instrument.report.terminal import NOT_WIDENED, UNSEEN


class Model(nn.Module):
    def __init__(self, shift):
        super().__init__()
        self.shift = shift
        self.layer = nn.Linear(4, 4)

    def forward(self, x):
        y = torch.special.i0e(self.layer(x)) + self.shift
        return torch.special.ndtri(y).sum()


def breaking(x, weight):
    y = x * weight
    torch._dynamo.graph_break()
    return torch.special.ndtri(y + 100).sum()


def train(loss_of, parameters, steps=2):
    optimizer = torch.optim.SGD(parameters, lr=1e-3)
    torch.manual_seed(0)
    for _ in range(steps):
        optimizer.zero_grad()
        loss_of(torch.randn(3, 4)).backward()
        optimizer.step()


def line_of(function):
    return inspect.getsourcelines(function)[1]


@pytest.fixture(autouse=True)
def _fresh_dynamo():
    torch.compiler.reset()
    yield
    torch.compiler.reset()


def run_compiled(shift, **config):
    model = Model(shift)
    compiled = torch.compile(model.forward, backend="aot_eager")
    with instrument.stable(**config) as run:
        train(compiled, model.parameters())
    return run


@pytest.mark.parametrize("profile", ["train", "observe"])
def test_a_failure_in_compiled_code_says_what_was_not_watched(profile, tmp_path):
    run = run_compiled(100.0, profile=profile)
    expected = {"file": __file__, "line": line_of(Model.forward), "name": "Model.forward"}
    assert run.facts()["not_watched"] == [expected]
    (said,) = [line for line in run.summary(width=40).splitlines() if UNSEEN in line]
    assert said.strip().endswith(f"test_compiled.py:{expected['line']} Model.forward")
    run.save(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["not_watched"] == [expected]
    assert f"test_compiled.py:{expected['line']} Model.forward" in (tmp_path / "report.html").read_text()


def test_a_healthy_compiled_run_says_nothing():
    run = run_compiled(-0.1, profile="guard")
    assert run.facts()["not_watched"] == []
    assert UNSEEN not in run.summary()


def test_a_failure_without_compiled_code_says_nothing():
    model = Model(100.0)
    with instrument.stable() as run:
        train(model, model.parameters())
    assert run.first_cause is not None
    assert run.facts()["not_watched"] == []


def test_what_was_compiled_for_another_run_is_not_said():
    healthy = Model(-0.1)
    with instrument.stable():
        train(torch.compile(healthy.forward, backend="aot_eager"), healthy.parameters())
    model = Model(100.0)
    with instrument.stable() as run:
        train(model, model.parameters())
    assert run.facts()["not_watched"] == []


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")  # Dynamo's own look at y
def test_a_function_compiled_in_parts_is_named_once_at_its_definition():
    weight = nn.Parameter(torch.ones(4))
    compiled = torch.compile(breaking, backend="aot_eager")
    with instrument.stable() as run:
        train(lambda x: compiled(x, weight), [weight])
    assert run.facts()["not_watched"] == [{"file": __file__, "line": line_of(breaking), "name": "breaking"}]


def test_dynamo_is_not_imported_for_it():
    code = (
        "import sys; from instrument.locate.compiled import Compiled; before = 'torch._dynamo' in sys.modules; "
        "found = Compiled(); found.failed(); print(found.unseen, before == ('torch._dynamo' in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == "() True\n"


def attend(x):
    return torch.softmax(x, -1) + torch.log_softmax(x, -1)


HALF_ROWS = torch.tensor([[1.0, 2.0, 3.0], [0.1, 4.0, -2.0]], dtype=torch.bfloat16)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("when", ["before", "inside"])
def test_upcast_holds_in_compiled_code_that_calls_torch_by_name_and_ends_with_the_block(backend, when):
    compiled = torch.compile(attend, backend=backend, fullgraph=True)
    plain = attend(HALF_ROWS)
    rounded_once = HALF_ROWS.float().softmax(-1).bfloat16() + HALF_ROWS.float().log_softmax(-1).bfloat16()
    assert not torch.equal(plain, rounded_once), "negative control"
    if when == "before":
        assert torch.equal(compiled(HALF_ROWS), plain)
    with instrument.stable(profile="guard", softmax={"upcast": True}) as run:
        assert torch.equal(compiled(HALF_ROWS), rounded_once)
    assert torch.equal(compiled(HALF_ROWS), plain)
    with instrument.stable(profile="guard"):
        assert torch.equal(compiled(HALF_ROWS), plain)
    assert run.events == ()


def by_method(x):
    return x.log_softmax(-1)


def test_the_report_says_where_upcast_does_not_reach_into_compiled_code(tmp_path):
    compiled = torch.compile(by_method, backend="aot_eager", fullgraph=True)
    with instrument.stable(profile="guard", softmax={"upcast": True}) as run:
        compiled(HALF_ROWS)
    with instrument.stable(profile="guard") as not_asked:
        compiled(HALF_ROWS)
    expected = {"file": __file__, "line": line_of(by_method), "name": "by_method"}
    assert run.facts()["not_in_float32"] == [expected]
    (said,) = [line for line in run.summary().splitlines() if NOT_WIDENED in line]
    assert said.strip().endswith(f"test_compiled.py:{expected['line']} by_method")
    run.save(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text())["not_in_float32"] == [expected]
    assert f"test_compiled.py:{expected['line']} by_method" in (tmp_path / "report.html").read_text()
    assert not_asked.facts()["not_in_float32"] == []
    assert NOT_WIDENED not in not_asked.summary()
