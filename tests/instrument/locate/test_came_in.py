"""What came in bad is said to be that: from which variable and statement, out of a checkpoint, a conversion, a buffer or a worker."""

import math
import multiprocessing
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import instrument
from instrument.events import Site
from instrument.locate.births import Birth
from instrument.locate.made_data import MadeData, is_taken_from
from instrument.locate.worker_births import WorkerBirths

HERE = str(Path(__file__))


def line_of(text):
    """The number of the one line of this file that ends in the comment."""
    lines = [i for i, line in enumerate(Path(__file__).read_text(encoding="utf-8").splitlines(), start=1) if line.endswith(f"# {text}")]
    assert len(lines) == 1
    return lines[0]


def fit(batches, net=None, profile="train", loss_of=None):
    """Train a layer on these batches; returns the run."""
    torch.manual_seed(0)
    net = nn.Linear(3, 1) if net is None else net
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    with instrument.stable(profile=profile) as run:
        for x, y in batches:
            out = net(x)  # use of data
            loss = (out - y).abs().mean() if loss_of is None else loss_of(out, y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert all(bool(torch.isfinite(p).all()) for p in net.parameters())
    return run


def test_the_statement_that_read_a_table_with_a_hole_is_told():
    readings = [[float(i), 2.0, 3.0] for i in range(16)]
    readings[5][1] = math.nan  # the reading that fails
    table = torch.tensor(readings)
    order = torch.randperm(16)
    batches = [(table[order[i : i + 4]], torch.zeros(4, 1)) for i in range(0, 16, 4)] * 3
    cause = fit(batches).first_cause
    assert (cause.code, cause.line) == ("NS803", line_of("the reading that fails"))
    assert f"it is of table, which came from {HERE}:{cause.line}: readings[5][1] = math.nan" in cause.message
    assert f"at {HERE}:{line_of('use of data')} is the first to meet it" in cause.message
    assert "1 of 16 rows (5), first at (5, 1)" in cause.message


def test_a_write_into_a_part_of_the_table_is_its_statement():
    table = torch.rand(12, 3)
    table[7, 2] = math.nan  # writes the hole
    cause = fit([(table[i : i + 4], torch.zeros(4, 1)) for i in (0, 4, 8)] * 3).first_cause
    assert f"which came from {HERE}:{line_of('writes the hole')}: table[7, 2] = math.nan" in cause.message


def test_data_that_is_of_no_variable_is_still_data():
    def batches():
        for i in range(6):
            yield torch.rand(4, 3).index_fill(0, torch.tensor([1]), math.nan if i == 2 else 0.5), torch.zeros(4, 1)

    cause = fit(batches()).first_cause
    assert cause.code == "NS803"
    assert "in 1 of 4 rows (1)" in cause.message


def test_parts_and_copies_are_recognised_and_others_are_not():
    table = torch.rand(20, 3)
    table[3, 1] = math.nan
    assert is_taken_from(table[2:5], table)
    assert is_taken_from(table[torch.tensor([3, 9])], table)
    assert not is_taken_from(torch.rand(4, 3), table)
    assert not is_taken_from(torch.full((4, 3), math.nan), table), "nothing to recognise it by"


def test_a_target_with_a_hole_is_data_and_no_loss_that_overflows():
    x, y = torch.rand(12, 3), torch.rand(12, 1)
    y[6] = math.nan
    batches = [(x[i : i + 4], y[i : i + 4]) for i in (0, 4, 8)] * 3
    cause = fit(batches, loss_of=lambda out, y: F.mse_loss(out, y)).first_cause
    assert cause.code == "NS803"
    assert "in 1 of 4 rows (2)" in cause.message


@pytest.mark.parametrize(("target", "code"), [(1e30, "NS604"), (math.nan, "NS803")])
def test_a_loss_that_overflows_by_itself_stays_a_finding_of_its_own(target, code):
    y = torch.full((4, 1), target)
    cause = fit([(torch.rand(4, 3), y)] * 4, loss_of=lambda out, y: F.mse_loss(out, y)).first_cause
    assert cause.code == code


def test_a_buffer_that_a_checkpoint_brought_is_named_where_it_was_loaded():
    state = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1)).state_dict()
    state["1.running_mean"][2] = math.nan
    net = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Linear(3, 1))
    with instrument.stable(profile="train"):
        net.load_state_dict(state)  # loads the buffer
    net[1].eval()
    cause = fit([(torch.rand(4, 3), torch.zeros(4, 1))] * 5, net).first_cause
    assert (cause.code, cause.line) == ("NS804", line_of("loads the buffer"))
    assert "the buffer 1.running_mean" in cause.message


def test_a_state_that_moves_on_from_a_bad_result_is_traced_to_the_line_that_makes_it():
    made = MadeData()
    site = Site(HERE, 1, "f", None)
    first = torch.tensor([0.1, 0.2, 0.3, 0.4, math.nan])
    later = torch.tensor([1.1, 1.2, 1.3, 1.4, math.nan])
    made.add(first, Birth("NS304", "div", site, "division by 0"))
    assert made.origin_of(later.clone()) is None
    made.renew(later, site, "div")
    assert made.origin_of(later.clone()).site is site


@pytest.mark.parametrize(("profile", "expected"), [("train", 0.0), ("guard", math.inf)])
def test_data_that_an_operation_made_bad_is_mended_where_the_config_repairs(profile, expected):
    with instrument.stable(profile=profile) as run:
        gaps = torch.tensor([1.0, 0.5, 0.0, 2.0, 4.0, 8.0])
        rate = 1.0 / gaps  # made of a gap
        w = torch.ones(6, requires_grad=True)
        optimizer = torch.optim.SGD([w], lr=0.1)
        for _ in range(5):
            optimizer.zero_grad()
            (w * rate).sum().backward()
            optimizer.step()
    assert run.first_cause.line == line_of("made of a gap")
    assert torch.isfinite(w).all()
    assert rate[2].item() == expected
    assert rate[[0, 1, 3, 4, 5]].tolist() == [1.0, 2.0, 0.5, 0.25, 0.125], "nothing else is touched"


# Conversions ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "convert", [lambda x: x.half(), lambda x: x.to(torch.float16), lambda x: x.type(torch.float16), lambda x: x.to(dtype=torch.half)]
)
def test_a_conversion_that_overflows_is_where_the_infinity_was_born(convert):
    with instrument.stable(profile="train") as run:
        torch.manual_seed(0)
        table = torch.tensor([[20.0, 7e4], [30.0, 100.0], [40.0, 9e4], [50.0, 10.0]])
        small = convert(table)
        net = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 1))
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        for _ in range(6):
            optimizer.zero_grad()
            net(small.float()).pow(2).sum().backward()
            optimizer.step()
    cause = run.first_cause
    assert cause.code == "NS805"
    assert "2 of 8 numbers are beyond 65504" in cause.message


def test_conversions_without_overflow_or_of_what_is_infinite_already_are_left_alone():
    with instrument.stable(profile="guard") as run:
        x = torch.tensor([1.0, -math.inf, 65504.0], requires_grad=True)
        y = x.half()
        assert torch.equal(y, torch.tensor([1.0, -math.inf, 65504.0], dtype=torch.float16))
        assert x.to(torch.float32) is x
        assert x.type() == "torch.FloatTensor"
        assert torch.tensor([1.5]).double().to(torch.float32).dtype is torch.float32
        assert run.search.births.origin() is None
        torch.tensor([7e4]).half()
        assert run.search.births.origin().op == "half"
    assert not run.events, "it spoiled nothing"


# Infinities that are meant, and those that are not --------------------------------------------------------------------


def attend(scale, mask):
    torch.manual_seed(0)
    q, k = nn.Linear(8, 8).half(), nn.Linear(8, 8).half()
    optimizer = torch.optim.SGD([*q.parameters(), *k.parameters()], lr=1e-4)
    with instrument.stable(profile="train") as run:
        for _ in range(5):
            x = (torch.randn(2, 4, 8) * scale).half()
            scores = q(x) @ k(x).transpose(1, 2)  # scores overflow
            if mask:
                scores = scores.masked_fill(torch.ones(2, 4, 4, dtype=torch.bool).tril(-1).flip(2), -math.inf)
                scores[0, 0] = -math.inf
            weights = torch.softmax(scores, -1)  # empty rows
            optimizer.zero_grad()
            (weights.float() @ x.float()).mean().backward()
            optimizer.step()
    return run


def test_a_row_of_scores_that_overflowed_is_traced_to_the_product():
    assert attend(2000.0, mask=False).first_cause.line == line_of("scores overflow")


def test_a_row_that_was_masked_is_a_finding_of_the_softmax():
    cause = attend(1.0, mask=True).first_cause
    assert (cause.code, cause.line) == ("NS401", line_of("empty rows"))


def test_an_infinity_that_the_script_wrote_down_is_not_where_it_began():
    w = torch.randn(3, 3, requires_grad=True)
    optimizer = torch.optim.SGD([w], lr=0.1)
    hidden = torch.tensor([[False, True, False]] * 3)
    wanted = torch.tensor([[1.0, 0.0, 0.0]] * 3)
    with instrument.stable(profile="train") as run:
        for _ in range(5):
            log_p = torch.log_softmax(w.masked_fill(hidden, -math.inf), -1)
            loss = -(wanted * log_p).sum()  # 0 times infinity
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert run.first_cause.line == line_of("0 times infinity")
    assert torch.isfinite(w).all()


def test_complex_numbers_that_go_bad_are_located_and_bounded():
    amplitude = torch.tensor([1.0, 0.0, 2.0], requires_grad=True)
    optimizer = torch.optim.SGD([amplitude], lr=0.01)
    with instrument.stable(profile="train") as run:
        for _ in range(6):
            z = torch.polar(amplitude, torch.ones(3))
            unit = z / z.abs()  # 0 over 0
            loss = (unit.real - 1).pow(2).sum() + amplitude.pow(2).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    assert run.first_cause.line == line_of("0 over 0")
    assert torch.isfinite(amplitude).all()
    assert torch.isfinite(loss)


# Workers --------------------------------------------------------------------------------------------------------------


def tell(births, values):
    births.add(torch.tensor(values), Birth("NS304", "div", Site(HERE, 7, "__getitem__", "x / x.max()"), "division by 0"))


def test_a_forked_worker_tells_what_it_made_bad():
    births = WorkerBirths()
    tell(births, [math.nan])
    assert births.origin_of(torch.tensor([math.nan])) is None, "the training process itself has no need to"
    worker = multiprocessing.get_context("fork").Process(target=tell, args=(births, [1.0, math.nan]))
    worker.start()
    worker.join()
    found = births.origin_of(torch.tensor([2.0, math.nan]))
    assert (found.code, found.site.line) == ("NS304", 7)
    assert "in a worker of the DataLoader" in found.message
    assert births.origin_of(torch.tensor([math.inf])) is None, "infinities are another matter"
    births.close()
    assert births.origin_of(torch.tensor([math.nan])) is None
    assert not births._lines._file.exists()


def converted(x):
    return x.half().float() + x.to(torch.float16).to(x.dtype) + x.type(torch.float64).to(torch.float32) + x.to("cpu").to(x)


@pytest.mark.filterwarnings("ignore:.torch.jit.trace. is deprecated:DeprecationWarning")
@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_conversions_compile_trace_and_vectorise_as_before(backend):
    x = torch.randn(4, 3) * 1e3
    expected = converted(x)
    with instrument.stable(profile="guard") as run:
        torch.compiler.reset()
        assert torch.equal(torch.compile(converted, backend=backend, fullgraph=True)(x), expected)
        assert torch.equal(torch.jit.trace(converted, (x,))(x), expected)
        assert torch.equal(torch.fx.symbolic_trace(converted)(x), expected)
        assert torch.equal(torch.func.vmap(converted)(x), expected)
        assert nn.Linear(3, 3).half().to(torch.float32).double().weight.dtype is torch.float64
        assert torch.tensor([1.0, 7e4]).to_sparse().to(torch.float16).dtype is torch.float16
    torch.compiler.reset()
    assert not run.events


def test_a_sparse_table_beside_bad_data_is_not_asked_where_its_memory_lies():
    counts = torch.sparse_coo_tensor([[0, 1, 3], [0, 2, 1]], [1.0, 2.0, 3.0], (4, 3), check_invariants=True).coalesce()
    dense = torch.rand(4, 3)
    dense[2, 1] = math.nan  # a word that nobody counts
    assert fit([(dense, torch.zeros(4, 1))] * 4).first_cause.line == line_of("a word that nobody counts")
    assert counts.is_coalesced(), "it lies in a variable of this frame"
