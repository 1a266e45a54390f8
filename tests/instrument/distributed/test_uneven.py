"""Processes that do not do the same: none hangs, waits or is changed because it is guarded."""

import json

import pytest

from tests.instrument.distributed import uneven
from tests.instrument.distributed.launch import HERE, launch

pytestmark = pytest.mark.xdist_group("distributed-uneven")

NO_PAUSE = 30.0
"""Seconds: half of what a process waits for one that does not come. A script takes one or two."""

CASES = [(script.__name__, name) for script in uneven.SCRIPTS for name in uneven.variants(script)]

FAULTY = ("steps_only_where_the_loss_is_finite", "one_rank_fails_again_and_again", "one_rank_of_shards_fails_again_and_again")


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    folder = tmp_path_factory.mktemp("uneven")
    ended = launch([HERE / "uneven.py", folder], seconds=150)
    reached = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2) if (folder / f"{rank}.json").exists()]
    assert all(end.status is not None for end in ended), f"hangs after {[r[-1]['script'] for r in reached]}\n" + ended[0].stderr[-3000:]
    assert [end.status for end in ended] == [0, 0], ended[0].stderr[-3000:] + ended[1].stderr[-3000:]
    assert "decides alone" not in ended[0].stderr + ended[1].stderr
    return [{(one["script"], one["guarded"]): one for one in results} for results in reached]


@pytest.mark.parametrize("case", CASES, ids="-".join)
def test_it_runs_as_without_us(results, case):
    for rank in range(2):
        told = results[rank][case]
        assert told["seconds"] < NO_PAUSE
        if case[0] in FAULTY:
            assert not results[0][case]["plain_is_finite"], "the bad gradient of one rank is the gradient of the other"
            assert told["finite"]
        else:
            assert told["as_plain"]
            assert told["events"] == []


def test_all_ranks_roll_back_together(results):
    for script in uneven.AGAIN_AND_AGAIN:
        here, there = (results[rank][script.__name__, "rollback"] for rank in range(2))
        assert here["rolled_back"] == there["rolled_back"] == 1
    here, there = (results[rank]["one_rank_fails_again_and_again", "rollback"] for rank in range(2))
    assert here["parameters"] == there["parameters"], "copies are equal to the last bit"
