"""What is not a plain dense tensor of a real floating dtype, or is watched by somebody else, behaves inside a block as it does outside."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import instrument
from tests.instrument.no_harm.bits import difference
from tests.instrument.no_harm.calls import CALLS, elementwise, inputs, rows

every_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())


def outcome(work: Callable[[], Any]) -> Any:
    """What `work` gives, or the type and words of its error."""
    torch.manual_seed(51)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return work()
    except Exception as error:
        return type(error).__name__, str(error).partition("\n")[0]


def check_same(work: Callable[[], Any]) -> Any:
    """The outcome is the same to the bit inside a block, nothing is logged, and it is the same again afterwards."""
    plain = outcome(work)
    with instrument.stable("1.0.0", profile="guard") as run:
        guarded = outcome(work)
    assert difference(plain, guarded) is None, (plain, guarded)
    assert run.events == ()
    assert difference(plain, outcome(work)) is None
    return plain


# Subclasses and modes ---------------------------------------------------------------------------------------------------


class Plain(Tensor):
    """A subclass that adds nothing: every operation has to give it back."""


class Recording(Tensor):
    """A subclass with `__torch_function__` of its own."""

    seen: list[str]

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        cls.seen.append(getattr(func, "__name__", str(func)))
        return super().__torch_function__(func, types, args, kwargs or {})


class Duck:
    """Not a tensor at all: an object that answers for torch's functions."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return f"asked for {func.__name__} with {len(args)} arguments and {sorted(kwargs or {})}"


@every_call
def test_subclasses_come_back_as_themselves(call: Any) -> None:
    def work() -> Any:
        x = inputs().as_subclass(Plain).requires_grad_()
        out = call(x)
        return out, torch.autograd.grad(out.sum(), x)

    assert type(check_same(work)[0]) is Plain


@every_call
def test_subclasses_see_the_same_functions(call: Any) -> None:
    def work() -> list[str]:
        Recording.seen = []
        call(inputs().as_subclass(Recording))
        return list(Recording.seen)

    assert len(check_same(work)) > 5


def test_objects_that_answer_for_torchs_functions_are_asked_as_before() -> None:
    def work() -> list[Any]:
        duck: Any = Duck()
        asked = [torch.exp(duck), torch.softmax(duck, dim=0), torch.log(duck), torch.sqrt(duck), torch.div(duck, 2.0), torch.linalg.cholesky(duck)]
        return [*asked, torch.pow(2.0, duck), torch.nn.functional.cross_entropy(duck, duck), torch.exp(torch.ones(1), out=duck)]

    assert all(isinstance(answer, str) for answer in check_same(work))


class Functions(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", str(func))
        # A guard asks a result for its dtype, device and size before it decides to go past the mode: no operation, and not listed here.
        if name not in ("__get__", "numel"):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


class Dispatched(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.seen.append(str(func))
        return func(*args, **(kwargs or {}))


@every_call
@pytest.mark.parametrize("mode", [Functions, Dispatched])
def test_modes_see_the_same_operations(mode: Any, call: Any) -> None:
    def work() -> Any:
        x = inputs().requires_grad_()
        with mode() as watching:
            out = call(x)
            (gradient,) = torch.autograd.grad(out.sum(), x)
        return watching.seen, out.detach(), gradient

    assert len(check_same(work)[0]) > 5


@every_call
@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_a_default_device_rules_as_before(device: str, call: Any) -> None:
    def work() -> Any:
        with torch.device(device):
            x = torch.ones(3, 5)
            return torch.full((3,), -float("inf")), torch.ones(2).exp(), outcome(lambda: call(x + torch.arange(15.0).reshape(3, 5) / 10))

    assert check_same(work)[1].device.type == device


@every_call
def test_meta_and_fake_tensors_stay_shapes_only(call: Any) -> None:
    shape = check_same(lambda: outcome(lambda: call(inputs().to("meta"))))
    assert isinstance(shape, tuple) or shape.is_meta  # what reads values (gaussian_nll_loss) refuses meta tensors, inside as outside

    def fake() -> Any:
        with FakeTensorMode() as mode:
            out = call(mode.from_tensor(inputs()))
        assert isinstance(out, FakeTensor)
        return tuple(out.shape), out.dtype

    check_same(fake)


# Other dtypes and layouts -----------------------------------------------------------------------------------------------


def _each(work: Callable[[Any, str], Any], *names: str) -> Callable[[], list[Any]]:
    return lambda: [outcome(lambda name=name: work(None, name)) for name in names]


UNARY = ("exp", "expm1", "sinh", "cosh", "log", "log2", "log10", "log1p", "sqrt", "rsqrt", "reciprocal", "acos", "asin", "square")


@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128, torch.int64, torch.int8, torch.uint8, torch.bool], ids=str)
def test_dtypes_that_no_guard_looks_at_keep_even_their_infinities(dtype: torch.dtype) -> None:
    x = torch.tensor([0, 1, 100, 120]).to(dtype)

    def work() -> list[Any]:
        results = [outcome(lambda name=name: getattr(torch, name)(x)) for name in UNARY]
        results += [outcome(lambda name=name: getattr(x.clone(), name + "_")()) for name in UNARY]
        results += [outcome(lambda: x / x), outcome(lambda: x**-1), outcome(lambda: 1 / x), outcome(lambda: x // 2), outcome(lambda: x.pow(0.5))]
        return [*results, outcome(lambda: torch.softmax(x, 0)), outcome(lambda: x.masked_fill(x == 0, 1)), outcome(lambda: x.std())]

    check_same(work)


LAYOUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "coo": lambda x: x.relu().to_sparse(),
    "csr": lambda x: x.relu().to_sparse_csr(),
    "csc": lambda x: x.relu().to_sparse_csc(),
    "nested": lambda x: torch.nested.nested_tensor([x[0], x[1, :3]]),
    "jagged": lambda x: torch.nested.nested_tensor([x[0], x[1, :3]], layout=torch.jagged),
    "mkldnn": lambda x: x.to_mkldnn(),
    "quantised": lambda x: torch.quantize_per_tensor(x, 0.1, 10, torch.quint8),
    "conjugate": lambda x: torch.complex(x, x).conj(),
    "negative view": lambda x: torch.complex(x, x).conj().imag,
}


@pytest.mark.parametrize("kind", LAYOUTS)
def test_layouts_pass_through(kind: str) -> None:
    def work() -> list[Any]:
        x = LAYOUTS[kind](inputs())
        results = [outcome(lambda name=name: getattr(torch, name)(x)) for name in UNARY]
        results += [
            outcome(lambda: torch.softmax(x, -1)),
            outcome(lambda: x / 2.0),
            outcome(lambda: x.norm()),
            outcome(lambda: x**2),
            outcome(lambda: x / x),
        ]
        results += [outcome(lambda: torch.relu(x)), outcome(lambda: torch.clone(x))]
        return [*results, outcome(lambda: torch.sparse.softmax(x, 1)), outcome(lambda: torch.nn.functional.log_softmax(x, -1))]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_same(work)
    assert sum(isinstance(found, Tensor) for found in results) >= 2


# Modes of autograd ------------------------------------------------------------------------------------------------------


@every_call
def test_inference_mode_and_no_grad(call: Any) -> None:
    def work() -> Any:
        with torch.inference_mode():
            inside = call(inputs())
        with torch.no_grad():
            without = call(inputs().requires_grad_())
        return inside, without, inside.is_inference()

    assert check_same(work)[2]


@every_call
def test_saved_tensors_hooks_see_nothing_extra(call: Any) -> None:
    def work() -> Any:
        packed: list[Any] = []
        unpacked: list[Any] = []

        def pack(x: Tensor) -> Tensor:
            packed.append((tuple(x.shape), x.dtype))
            return x

        def unpack(x: Tensor) -> Tensor:
            unpacked.append(tuple(x.shape))
            return x

        x = inputs().requires_grad_()
        with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
            out = call(x)
            (gradient,) = torch.autograd.grad(out.sum(), x)
        return packed, unpacked, gradient

    assert len(check_same(work)[0]) > 3


@every_call
def test_the_graph_has_the_same_nodes(call: Any) -> None:
    def work() -> list[str]:
        pending, seen, names = [call(inputs().requires_grad_()).grad_fn], set(), []
        while pending:
            node = pending.pop()
            if node is not None and node not in seen:
                seen.add(node)
                names.append(node.name())
                pending += [parent for parent, _ in node.next_functions]
        return names

    assert len(check_same(work)) > 5


@every_call
def test_anomaly_mode_hooks_and_retained_gradients(call: Any) -> None:
    def work() -> Any:
        seen = []
        x = inputs().requires_grad_()
        with torch.autograd.detect_anomaly(check_nan=True):
            y = x * 2.0
            y.retain_grad()
            y.register_hook(lambda g: seen.append(g.clone()))
            out = call(y).sum()
            out.backward(retain_graph=True)
            out.backward()
        return seen, x.grad, y.grad

    assert len(check_same(work)[0]) == 2


# torch.func -------------------------------------------------------------------------------------------------------------


@every_call
def test_transforms_of_torch_func(call: Any) -> None:
    from torch.func import functionalize, grad, hessian, jacfwd, jacrev, jvp, linearize, vjp, vmap

    x = inputs(torch.float64)

    def scalar(z: Tensor) -> Tensor:
        return call(z).sum()

    def work() -> list[Any]:
        many = torch.stack([x, x + 0.1])
        works: list[Callable[[], Any]] = [
            lambda: vmap(call)(many),
            lambda: vmap(grad(scalar))(many),
            lambda: vmap(vmap(lambda z: z.exp().log().sqrt() / (z * z + 1.0), in_dims=1))(many),
            lambda: jvp(call, (x,), (torch.ones_like(x),)),
            lambda: vjp(scalar, x)[1](torch.ones((), dtype=torch.float64)),
            lambda: jacrev(scalar)(x),
            lambda: jacfwd(scalar)(x),
            lambda: hessian(scalar)(x[:, :5]),
            lambda: grad(lambda z: grad(scalar)(z).square().sum())(x),
            lambda: functionalize(call)(x),
            lambda: linearize(scalar, x)[1](torch.ones_like(x)),
        ]
        return [outcome(w) for w in works]

    results = check_same(work)
    assert sum(isinstance(found, Tensor) for found in results) >= 5


def test_forward_mode_and_functional_call() -> None:
    import torch.autograd.forward_ad as forward

    module = torch.nn.Sequential(torch.nn.Linear(5, 5), torch.nn.Softmax(-1))

    def work() -> Any:
        torch.manual_seed(52)
        parameters = {name: torch.randn_like(p) for name, p in module.named_parameters()}
        with forward.dual_level():
            dual = forward.make_dual(inputs(), torch.ones(3, 5))
            tangent = forward.unpack_dual(rows(elementwise(dual))).tangent
        return tangent, torch.func.functional_call(module, parameters, (inputs(),)), torch.func.jacrev(lambda p: module(p).log())(inputs()[0])

    check_same(work)


def test_batched_overflow_under_vmap_is_left_alone() -> None:
    """A guard that looked at values would break the transform: inside one, what overflows does so as outside."""
    check_same(lambda: torch.func.vmap(lambda z: (z.exp(), torch.log(z - z), z / (z - z)))(torch.tensor([1.0, 1000.0])))
