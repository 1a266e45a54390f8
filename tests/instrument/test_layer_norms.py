"""Gradient norms by parameter: the right numbers under the right names, at a few steps of a run however long it is."""

import itertools
import math

import pytest
import torch
from torch import nn

import instrument
from instrument.layer_norms import MOST_BAD_COLUMNS, MOST_COLUMNS, LayerNorms, LayerTable, parameter_paths
from latent_drift.errors import UsageError


def small_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))


def test_the_norms_are_those_of_the_gradients_before_anything_is_done_to_them():
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.0)
    expected = []
    with instrument.stable(profile="train", gradient={"clip": {"kind": "norm", "max_norm": 1e-3}}) as run:
        for _ in range(4):
            optimizer.zero_grad()
            (model(torch.randn(5, 3)) ** 2).sum().backward()
            expected.append([p.grad.double().norm().item() for p in model.parameters()])
            optimizer.step()
    table = run.layers.table()
    assert table.steps == (0, 1, 3)
    assert table.names == ("0.weight", "0.bias", "1.weight", "1.bias")
    for row, name in enumerate(table.names):
        for column, step in enumerate(table.steps):
            assert table.norms[row][column] == pytest.approx(expected[step][row], rel=1e-6), name


def test_a_step_that_is_not_bad_and_not_due_takes_nothing(monkeypatch):
    norms = LayerNorms()
    optimizer = torch.optim.SGD(small_model().parameters(), lr=0.1)
    taken = []
    monkeypatch.setattr(
        "instrument.layer_norms._Columns.take", lambda self, parameters, scale, bad: taken.append(self.step) or setattr(self, "due", 99)
    )
    for _ in range(50):
        norms.see(optimizer, bad=False)
    assert taken == [1]


def test_columns_stay_few_and_spread_over_the_whole_run():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    parameter.grad = torch.ones(2)
    norms = LayerNorms()
    for _ in range(10_000):
        norms.see(optimizer, bad=False)
    steps = norms.table().steps
    assert 24 <= len(steps) <= MOST_COLUMNS
    assert steps[0] == 0
    assert steps[-1] > 9_000
    late = [after - before for before, after in itertools.pairwise(steps[4:])]
    assert max(late) <= 2 * min(late), "evenly, once it has begun"


def test_steps_gone_bad_are_kept_up_to_a_number():
    parameter = nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    parameter.grad = torch.tensor([1.0, math.nan])
    norms = LayerNorms()
    for _ in range(100):
        norms.see(optimizer, bad=True)
    table = norms.table()
    assert len(table.steps) == MOST_BAD_COLUMNS
    assert all(math.isnan(v) for v in table.norms[0])


def test_no_gradient_is_not_a_gradient_of_zero():
    frozen, dead, alive = (nn.Parameter(torch.ones(2)) for _ in range(3))
    optimizer = torch.optim.SGD([frozen, dead, alive], lr=0.1)
    dead.grad, alive.grad = torch.zeros(2), torch.full((2,), 3.0)
    norms = LayerNorms()
    norms.see(optimizer, bad=False)
    assert [row[0] for row in norms.table().norms] == [None, 0.0, pytest.approx(math.sqrt(18.0))]


@pytest.mark.parametrize(
    "gradient",
    [
        torch.full((4,), 1e30),
        torch.full((4,), 6e4, dtype=torch.float16),
        torch.full((4,), 1e300, dtype=torch.float64),
        torch.sparse_coo_tensor([[1, 3]], [3.0, 4.0], (8,), check_invariants=True),
    ],
    ids=["squares overflow", "half", "double", "sparse"],
)
def test_large_half_and_sparse_gradients_have_a_finite_norm(gradient):
    parameter = nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype))
    parameter.grad = gradient
    norms = LayerNorms()
    norms.see(torch.optim.SGD([parameter], lr=0.1), bad=False)
    assert norms.table().norms[0][0] == pytest.approx(gradient.to_dense().double().div(1e150).norm().item() * 1e150, rel=1e-3)


def test_gradients_under_a_factor_are_unscaled():
    parameter = nn.Parameter(torch.zeros(2))
    parameter.grad = torch.full((2,), 1024.0)
    norms = LayerNorms()
    norms.see(torch.optim.SGD([parameter], lr=0.1), bad=False, scale=1024.0)
    assert norms.table().norms[0][0] == pytest.approx(math.sqrt(2.0))


def test_one_model_is_named_by_its_paths():
    model = small_model()
    assert parameter_paths(list(model.parameters())) == [("model", name) for name, _ in model.named_parameters()]


class Trainer:
    def __init__(self):
        self.network = small_model()

    def names(self):
        return parameter_paths([p for _, p in sorted(self.network.named_parameters())])


def test_a_model_in_an_attribute_is_found():
    assert Trainer().names() == [("network", name) for name in ("0.bias", "0.weight", "1.bias", "1.weight")]


def hidden():
    """A model that no frame's variables lead to."""
    return {"box": [small_model()]}


def test_a_model_that_is_nowhere_in_sight_is_found_among_all_objects():
    held = hidden()
    paths = parameter_paths(list(held["box"][0].parameters()))
    assert [name for _, name in paths] == ["0.weight", "0.bias", "1.weight", "1.bias"]


def test_plain_tensors_are_named_by_their_variable_and_unknown_ones_by_their_shape():
    log_sigma = torch.zeros(3, requires_grad=True)
    held = [torch.zeros(2, 7, requires_grad=True)]
    assert parameter_paths([log_sigma, held[0]]) == [("log_sigma", ""), ("", "a parameter of shape (2, 7)")]


def test_two_models_are_told_apart_and_a_wrapper_is_looked_through():
    generator, critic = small_model(), small_model()
    wrapped = nn.DataParallel(critic)
    one, two = torch.optim.SGD(generator.parameters(), lr=0.1), torch.optim.SGD(critic.parameters(), lr=0.1)
    for p in [*generator.parameters(), *wrapped.parameters()]:
        p.grad = torch.ones_like(p)
    norms = LayerNorms()
    norms.see(one, bad=False)
    norms.see(two, bad=False)
    names = norms.table().names
    assert names[0] == "generator.0.weight"
    assert names[4] == "critic.0.weight"
    assert len(set(names)) == 8


def test_updates_by_hand_have_a_map_too():
    weight = torch.randn(3, 2, requires_grad=True)
    with instrument.stable() as run:
        for _ in range(3):
            (weight**2).sum().backward()
            with torch.no_grad():
                weight -= 0.1 * weight.grad
                weight.grad = None
    table = run.layers.table()
    assert table.steps == (0, 1)
    assert table.names == ("weight",)


def test_the_table_survives_its_file_and_refuses_another():
    table = LayerTable((0, 3), ("a", "b"), ((1.0, math.inf), (None, 0.0)))
    assert LayerTable.from_json(table.as_json()) == table
    assert "Infinity" not in table.as_json()
    with pytest.raises(UsageError, match=r"layers\.json"):
        LayerTable.from_json('{"steps": 3}')
