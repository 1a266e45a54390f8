"""Training by torch.func: the gradients that its functions give are judged, and what spoils them is found inside the transforms."""

import pytest
import torch
from torch.func import functional_call, grad, grad_and_value, jacrev, vmap

import instrument


def softplus_by_hand(parameters, x):
    return torch.log(1 + torch.exp(x @ parameters["w"])).mean()


def train(derive, steps=6):
    torch.manual_seed(0)
    x = torch.randn(20, 3) * 200
    parameters = {"w": torch.ones(3)}
    for _ in range(steps):
        gradients = derive(softplus_by_hand)(parameters, x)
        parameters = {name: parameters[name] - 0.01 * gradients[name] for name in parameters}
    return parameters["w"]


def test_plain_it_ends_in_nan():
    assert train(grad).isnan().all(), "negative control"


@pytest.mark.parametrize("form", ["grad", "grad_and_value", "has_aux"])
def test_the_line_inside_the_transform_is_named_and_then_bounded(form):
    def derive(function):
        if form == "grad":
            return torch.func.grad(function)
        if form == "grad_and_value":
            return lambda *args: torch.func.grad_and_value(function)(*args)[0]
        return lambda *args: torch.func.grad(lambda *a: (function(*a), torch.ones(())), has_aux=True)(*args)[0]

    with instrument.stable(profile="guard") as run:
        w = train(derive)
    assert torch.isfinite(w).all()
    cause = run.first_cause
    assert (cause.code, cause.action, cause.file) == ("NS805", "observed", __file__)
    assert cause.source == 'return torch.log(1 + torch.exp(x @ parameters["w"])).mean()'
    assert ("NS805", "bounded") in {(e.code, e.action) for e in run.events}
    assert not torch.equal(w, torch.ones(3)), "it still learns"


def test_a_bad_gradient_inside_a_map_is_located():
    def norm(w, x):
        return torch.sqrt(((w - x) ** 2).sum())

    points = torch.randn(5, 3)
    with instrument.stable(profile="guard") as run:
        w = points[2].clone()
        for _ in range(4):
            gradients = torch.func.grad(lambda w: vmap(norm, (None, 0))(w, points).sum())(w)
            w = w - 0.0 * gradients
    assert torch.isfinite(w).all()
    assert run.first_cause.source == "return torch.sqrt(((w - x) ** 2).sum())"


@pytest.mark.parametrize("derive", [grad, grad_and_value])
def test_healthy_derivatives_are_the_same_to_the_bit(derive):
    net = torch.nn.Linear(3, 1)
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    x = torch.randn(4, 3)

    def loss(parameters, row):
        return functional_call(net, parameters, (row,)).pow(2).sum()

    plain = [derive(loss)(parameters, x), vmap(derive(loss), (None, 0))(parameters, x), jacrev(derive(loss))(parameters, x)]
    name = derive.__name__
    with instrument.stable(profile="guard") as run:
        guard = getattr(torch.func, name)
        guarded = [guard(loss)(parameters, x), vmap(guard(loss), (None, 0))(parameters, x), jacrev(guard(loss))(parameters, x)]
    flat = [torch.utils._pytree.tree_leaves(tree) for tree in (plain, guarded)]
    assert all(torch.equal(a, b) for a, b in zip(*flat, strict=True))
    assert not run.events
    assert getattr(torch.func, name) is derive


def test_compiled_whole_graphs_still_differentiate():
    def derivative(x):
        return torch.func.grad(lambda y: (y**3).sum())(x)

    x = torch.randn(5)
    expected = derivative(x)
    with instrument.stable(profile="guard") as run:
        inside = torch.compile(derivative, backend="eager", fullgraph=True)(x)
    assert torch.equal(inside, expected)
    assert not run.events


def test_a_module_that_is_called_inside_a_transform_is_not_replayed_outside_of_it():
    net = torch.nn.Linear(3, 1)
    parameters = {name: p.detach() for name, p in net.named_parameters()}
    x = torch.randn(20, 3) * 200

    def loss(parameters):
        return torch.log(1 + torch.exp(functional_call(net, parameters, (x,)))).mean()

    with instrument.stable() as run:
        for _ in range(5):
            gradients = torch.func.grad(loss)(parameters)
            parameters = {name: parameters[name] - 0.01 * gradients[name] for name in parameters}
    assert all(torch.isfinite(p).all() for p in parameters.values())
    assert run.first_cause.source == "return torch.log(1 + torch.exp(functional_call(net, parameters, (x,)))).mean()"


def test_data_with_a_hole_is_named_inside_a_transform_whose_wrappers_have_no_memory():
    """What the running frames hold inside `grad` are wrappers: asking one where its numbers lie raises."""
    data = torch.ones(5, 3)
    data[2, 1] = float("nan")
    parameters = {"w": torch.ones(3)}

    def loss(parameters, x):
        shifted = parameters["w"] * 2.0
        return (x @ shifted).mean()

    with pytest.raises(RuntimeError, match="storage"):  # negative control
        grad(lambda p: p["w"].sum() * float(p["w"].data_ptr() >= 0))(parameters)
    with instrument.stable(profile="observe") as run:
        for _ in range(4):
            grad(loss)(parameters, data)
    assert "NS803" in {e.code for e in run.events}
