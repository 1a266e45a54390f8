"""Compilers, tracers and scripters meet the functions that they know: same results, no graph break, no storm of recompilations, none left over."""

from __future__ import annotations

import inspect
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._dynamo
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounter

import instrument
from tests.instrument.no_harm.bits import difference
from tests.instrument.no_harm.calls import elementwise, inputs, losses, rows

ROOT = Path(__file__).parents[3]
BACKENDS = ["eager", "aot_eager"]
TRACED = {"elementwise": elementwise, "rows": rows, "losses": losses}
every_call = pytest.mark.parametrize("call", TRACED.values(), ids=TRACED.keys())


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    torch._dynamo.reset()


def _with_gradient(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    x = inputs().requires_grad_()
    out = function(x)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    return out.detach(), gradient


def _compiled(call: Callable[[Tensor], Tensor], backend: Any) -> Callable[[Tensor], Tensor]:
    compiled: Callable[[Tensor], Tensor] = torch.compile(call, backend=backend, fullgraph=True)
    return compiled


@every_call
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("when", ["before", "inside", "after"])
def test_compiled_code_gives_the_same_bits(when: str, backend: str, call: Any) -> None:
    plain = _with_gradient(_compiled(call, backend))
    torch._dynamo.reset()
    compiled = _compiled(call, backend)
    if when == "before":
        _with_gradient(compiled)
    with instrument.stable("1.0.0", profile="guard") as run:
        if when != "after":
            assert difference(plain, _with_gradient(compiled)) is None
        else:
            _with_gradient(call)
    assert run.events == ()
    assert difference(plain, _with_gradient(compiled)) is None


@pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler")
def test_inductor_gives_the_same_bits() -> None:
    """One small graph: compiling C++ takes seconds."""

    def call(x: Tensor) -> Tensor:
        return torch.softmax(torch.exp(x) / (x * x + 1.0), -1)

    plain = _with_gradient(_compiled(call, "inductor"))
    torch._dynamo.reset()
    compiled = _compiled(call, "inductor")
    with instrument.stable("1.0.0", profile="observe"):
        assert difference(plain, _with_gradient(compiled)) is None
    with instrument.stable("1.0.0", profile="guard"):
        guarded = _with_gradient(compiled)
    # The bound on exp's argument is part of this graph; fused with it the same sums may be rounded elsewhere, by an ulp.
    torch.testing.assert_close(guarded, plain, rtol=3e-7, atol=1e-7)
    assert difference(plain, _with_gradient(compiled)) is None


def test_compiled_code_keeps_the_bound_inside_and_loses_it_after() -> None:
    def overflowing(x: Tensor) -> Tensor:
        return torch.exp(x * 1000.0)

    compiled = _compiled(overflowing, "aot_eager")
    assert torch.isinf(compiled(torch.ones(3))).all()
    with instrument.stable("1.0.0", profile="guard"):
        assert torch.isfinite(compiled(torch.ones(3))).all()
    assert torch.isinf(compiled(torch.ones(3))).all()


def test_one_graph_inside_and_one_outside_however_often_a_block_is_entered() -> None:
    counter = CompileCounter()
    compiled = _compiled(elementwise, counter)
    for _ in range(4):
        compiled(inputs())
        with instrument.stable("1.0.0", profile="guard"):
            for _ in range(3):
                compiled(inputs())
    assert counter.frame_count <= 2


_FIRST_INSIDE = """
import torch, instrument
from tests.instrument.no_harm.calls import elementwise, inputs
with instrument.stable("1.0.0", profile="guard"):
    inside = torch.compile(elementwise, backend="eager", fullgraph=True)(inputs())
torch._dynamo.reset()
import torch._dynamo.trace_rules as rules
missing = [n for n in ("exp", "softmax", "log", "sqrt", "div", "pow", "acos") if rules.lookup(getattr(torch, n)) is not rules.lookup(torch.sin)]
missing += [n for n in ("exp", "log", "sqrt", "__truediv__") if rules.lookup(getattr(torch.Tensor, n)) is not rules.lookup(torch.Tensor.sin)]
assert not missing, missing
outside = torch.compile(elementwise, backend="eager", fullgraph=True)(inputs())
assert torch.equal(inside, outside) and torch.equal(outside, elementwise(inputs()))
def kept(x): return torch.softmax(torch.exp(x).log(), -1)
graphs = []
def look(graph, _):
    graphs.append([str(n.target) for n in graph.graph.nodes if n.op != "placeholder"])
    return graph.forward
torch.compile(kept, backend=look, fullgraph=True)(inputs())
assert len(graphs) == 1 and "clamp" not in str(graphs), graphs
assert "exp" in str(graphs) and "softmax" in str(graphs), graphs
"""


def test_the_first_compilation_of_a_process_may_be_inside_a_block() -> None:
    """Dynamo keeps rules by the identity of torch's functions, made on first use: made inside, they must hold the originals all the same."""
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", _FIRST_INSIDE], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert done.returncode == 0, done.stderr


def test_training_a_compiled_module_steps_the_same() -> None:
    def trained() -> list[Any]:
        torch.manual_seed(60)
        model = nn.Sequential(nn.Linear(5, 8), nn.Softplus(), nn.LayerNorm(8), nn.Linear(8, 3))
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        compiled = torch.compile(model, backend="aot_eager")
        seen = []
        for _ in range(4):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(compiled(inputs()), torch.tensor([0, 1, 2]))
            loss.backward()
            optimizer.step()
            seen.append(loss.item())
        return seen

    plain = trained()
    torch._dynamo.reset()
    with instrument.stable("1.0.0", profile="guard") as run:
        assert trained() == plain
    assert run.events == ()


# torch.export, FX -------------------------------------------------------------------------------------------------------


class Net(nn.Module):
    def __init__(self, call: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        return self.call(x)


@every_call
def test_export(call: Any) -> None:
    with instrument.stable("1.0.0", profile="guard"):
        exported = torch.export.export(Net(call), (inputs(),))
        inside = exported.module()(inputs())
    assert difference(call(inputs()), inside) is None
    assert difference(inside, exported.module()(inputs())) is None
    assert all("guarded" not in str(node.target) for node in exported.graph.nodes)


@every_call
def test_fx_records_torchs_own_functions(call: Any) -> None:
    def traced() -> tuple[list[tuple[str, str]], torch.fx.GraphModule]:
        graph = torch.fx.symbolic_trace(Net(call))
        return [(node.op, getattr(node.target, "__name__", str(node.target))) for node in graph.graph.nodes], graph

    try:
        plain, _ = traced()
    except (TypeError, torch.fx.proxy.TraceError) as error:
        with instrument.stable("1.0.0", profile="guard"), pytest.raises(type(error)):
            traced()
        return
    with instrument.stable("1.0.0", profile="guard"):
        guarded, graph = traced()
        inside = graph(inputs())
    assert guarded == plain
    assert difference(call(inputs()), inside) is None
    assert difference(inside, graph(inputs())) is None


@every_call
def test_make_fx_records_the_same_graph(call: Any) -> None:
    from torch.fx.experimental.proxy_tensor import make_fx

    plain = str(make_fx(call)(inputs()).graph)
    with instrument.stable("1.0.0", profile="guard"):
        assert str(make_fx(call)(inputs()).graph) == plain


# TorchScript ------------------------------------------------------------------------------------------------------------


def scripted(x: Tensor) -> Tensor:
    positive = x.abs() + 0.5
    out = torch.exp(x) + positive.log() + torch.sqrt(positive) / positive + positive.pow(0.5) + torch.softmax(x, dim=-1) + positive.rsqrt()
    out = out + torch.norm(x) + torch.nn.functional.log_softmax(x, dim=-1) + x.std() + torch.acos(torch.tanh(x)) + 1.0 / positive
    return out + torch.nn.functional.normalize(x, dim=-1) + torch.linalg.vector_norm(x) + torch.logsumexp(x, dim=-1, keepdim=True)


def _settled(function: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """TorchScript watches the first runs and then runs an optimised graph, whose rounding may differ by an ulp: that one is compared."""
    for _ in range(3):
        _with_gradient(function)
    return _with_gradient(function)


@pytest.mark.parametrize("when", ["before", "inside", "after"])
def test_script_and_trace(when: str) -> None:
    def both() -> list[Callable[[Tensor], Tensor]]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return [torch.jit.script(scripted), torch.jit.trace(scripted, inputs()), torch.jit.script(nn.Sequential(nn.Softmax(-1), nn.ELU()))]

    plain = [_settled(f) for f in both()]
    functions = both() if when == "before" else []
    with instrument.stable("1.0.0", profile="guard") as run:
        functions = functions or (both() if when == "inside" else [])
        for function, expected in zip(functions, plain, strict=False):
            assert difference(expected, _settled(function)) is None
    functions = functions or both()
    for function, expected in zip(functions, plain, strict=True):
        assert difference(expected, _settled(function)) is None
    assert run.events == ()


def test_a_trace_made_inside_holds_no_trace_of_us() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = str(torch.jit.trace(scripted, inputs()).inlined_graph)
        with instrument.stable("1.0.0", profile="guard"):
            guarded = str(torch.jit.trace(scripted, inputs()).inlined_graph)

    def operations(graph: str) -> list[str]:
        return [line.partition("aten::")[2].partition("(")[0] for line in graph.splitlines() if "aten::" in line]

    assert operations(guarded) == operations(plain)
    assert len(operations(plain)) > 10


def test_scripted_source_is_read_from_the_original() -> None:
    assert "scripted" in inspect.getsource(scripted)
