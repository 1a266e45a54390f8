"""One fault on one of two ranks: all ranks skip together, none hangs, and they end equal. All cases run in one launch; each is a test."""

import itertools
import json

import pytest

from tests.instrument.distributed import matrix
from tests.instrument.distributed.launch import HERE, launch

pytestmark = pytest.mark.xdist_group("distributed-matrix")

LIMIT = {"brief": 150, "full": 280}
BRIEF = list(matrix.cases("brief"))


def run_matrix(folder, extent):
    ended = launch([HERE / "matrix.py", folder, extent], seconds=LIMIT[extent])
    hung = [rank for rank, end in enumerate(ended) if end.status is None]
    assert not hung, f"ranks {hung} hang\n" + ended[hung[0]].stderr[-3000:]
    assert [end.status for end in ended] == [0, 0], ended[0].stderr[-3000:] + ended[1].stderr[-3000:]
    assert "decides alone" not in ended[0].stderr + ended[1].stderr
    by_case = [{}, {}]
    for rank in range(2):
        for result in json.loads((folder / f"{rank}.json").read_text()):
            by_case[rank][tuple(result.get(key) for key in ("kind", "place", "policy", "bad_rank"))] = result
    return by_case


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return run_matrix(tmp_path_factory.mktemp("matrix"), "brief")


@pytest.mark.parametrize("kind", matrix.MODELS)
def test_healthy_training_is_as_without_us(results, kind):
    for rank in range(2):
        healthy = results[rank][kind, "none", None, None]
        assert healthy["as_plain"]
        assert healthy["events"] == 0


@pytest.mark.parametrize("case", BRIEF, ids=lambda case: "-".join(map(str, case)))
def test_all_ranks_do_the_same_about_a_fault_on_one(results, case):
    check(results, case)


def check(results, case):
    kind, place, policy, bad_rank = case
    here, there = results[0][case], results[1][case]
    for mine in (here, there):
        assert mine["finite"]
        assert mine["agree"]
        assert mine["steps"] == matrix.STEPS
    assert here["skipped"] == there["skipped"]
    # Zeros in one copy of a gradient would make the copies of the parameters differ: there the step is left out whatever the policy.
    alone = kind.startswith("ddp") and place == "step"
    skips = policy == "skip" or alone
    assert here["skipped"] == int(skips)
    if skips:
        assert here["as_left_out"]
        assert there["as_left_out"]
    codes = set(results[bad_rank][case]["codes"])
    assert codes >= ({"NS508"} if place == "update" else {"NS506"})
    if place in ("forward", "data"):
        assert "NS509" in codes
        other = results[1 - bad_rank][case]
        assert other["codes"] == ["NS506"], "a rank that only received the bad number accuses no line of its own"
        assert f"it began on rank {bad_rank}" in other["messages"][0]
    if place in ("step", "update"):
        (message,) = results[1 - bad_rank][case]["messages"]
        assert f"rank {bad_rank}" in message or place == "update"


def test_shards_are_clipped_by_the_norm_of_the_whole(results):
    for rank in range(2):
        told = results[rank]["clip", "none", None, None]
        assert told["clipped"] == [matrix.STEPS, matrix.STEPS]
        # Adam divides by the gradient's own scale: differences of rounding stay at some 1e-7 a step of 1e-2
        assert told["difference"] < 1e-5


def test_the_matrix_has_every_place_on_each_rank(results):
    assert set(itertools.product(("ddp-buffers", "fsdp2"), matrix.PLACES, ("skip",), (0, 1))) <= results[0].keys()
    assert results[0].keys() == results[1].keys()


@pytest.mark.slow
def test_the_whole_matrix(tmp_path):
    results = run_matrix(tmp_path, "full")
    cases = list(matrix.cases("full"))
    assert len(cases) == 70
    for case in cases:
        check(results, case)
