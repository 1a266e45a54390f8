"""Collectives on two gloo processes: values, gradients, and the statistic over both ranks' samples."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.distributed as dist

from latent_drift.errors import UsageError
from latent_drift.models.distributed import all_reduce, is_dist_avail_and_initialized, world_size
from latent_drift.models.goodness_of_fit import FastEppsPulley, latent_normality_test
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.sequences import synthetic_sequences
from tests.models.two_ranks import RANKS

pytestmark = pytest.mark.xdist_group("two_ranks")


def _reductions(rank: int) -> dict[str, Any]:
    x = torch.tensor([rank + 1.0, 10.0 * (rank + 1)], requires_grad=True)
    out: dict[str, Any] = {"initialized": is_dist_avail_and_initialized(), "world": world_size()}
    for op in ("AVG", "avg", "SUM"):
        (gradient,) = torch.autograd.grad(all_reduce(x, op).square().sum(), x)
        out[op] = (all_reduce(x.detach(), op), gradient)
    twice = x.detach().clone()
    dist.all_reduce(twice, op=dist.ReduceOp.SUM)
    out["twice"] = twice / RANKS / RANKS  # as published, on a back end that averages by itself
    for op in ("MAX", "MIN", "PRODUCT"):
        out[op] = all_reduce(x.detach(), op)
    out["integers"] = all_reduce(torch.tensor(rank), "MAX")
    out["untouched"] = x.detach()
    y = all_reduce(x, "AVG")
    (first,) = torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)
    (out["second"],) = torch.autograd.grad(first.sum(), x)
    try:
        all_reduce(x, "MAX")
    except UsageError as error:
        out["refused"] = str(error)
    return out


def test_reductions_and_their_gradients(on_two_ranks: dict[str, list[Any]]) -> None:
    for rank, out in enumerate(on_two_ranks["reductions"]):
        assert out["initialized"]
        assert out["world"] == 2
        assert out["twice"][0].item() == 0.75  # the negative control
        assert out["AVG"][0].tolist() == out["avg"][0].tolist() == [1.5, 15.0]
        assert out["SUM"][0].tolist() == [3.0, 30.0]
        # loss = sum of both ranks' |avg|^2: d/dx = 2 * 2 avg / 2
        assert out["AVG"][1].tolist() == [3.0, 30.0]
        assert out["SUM"][1].tolist() == [12.0, 120.0]
        # third power: d/dx = 2 * 3 avg^2 / 2 = 3 avg^2 on both ranks, and once more 2 * 6 avg / 2
        assert out["second"].tolist() == [9.0, 90.0]
        assert out["MAX"].tolist() == [2.0, 20.0]
        assert out["MIN"].tolist() == [1.0, 10.0]
        assert out["PRODUCT"].tolist() == [2.0, 200.0]
        assert out["integers"].item() == 1
        assert out["untouched"].tolist() == [rank + 1.0, 10.0 * (rank + 1)]
        assert "MAX" in out["refused"]


def _sample(rank: int) -> torch.Tensor:
    """30 samples on the first rank, 50 on the second."""
    everything = torch.randn(80, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return everything[:30] if rank == 0 else everything[30:]


def _statistics(rank: int) -> dict[str, Any]:
    x = _sample(rank).requires_grad_()
    value = FastEppsPulley().double()(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    test = latent_normality_test(5).double()
    test.global_step.fill_(3 * rank)  # ranks that disagree
    return {"value": value.detach(), "gradient": gradient, "directions": test.directions(x), "loss": test(x * 30).detach()}


def test_statistic_is_that_of_all_ranks_samples_and_directions_agree(on_two_ranks: dict[str, list[Any]]) -> None:
    outs = on_two_ranks["statistics"]
    x = torch.cat([_sample(0), _sample(1)]).requires_grad_()
    value = FastEppsPulley().double()(x)
    (gradient,) = torch.autograd.grad(value.sum(), x)
    for out in outs:
        torch.testing.assert_close(out["value"], value.detach())
    # each rank's loss is the same number, and the gradient is that of their sum
    torch.testing.assert_close(torch.cat([out["gradient"] for out in outs]), RANKS * gradient)
    assert torch.equal(outs[0]["directions"], outs[1]["directions"])
    torch.testing.assert_close(outs[0]["loss"], outs[1]["loss"])


def _model() -> DeterministicLatentODE:
    torch.manual_seed(0)
    return DeterministicLatentODE(30, 8, 16, 8, num_slices=16).double()


def _tokens() -> torch.Tensor:
    return synthetic_sequences(8, torch.Generator().manual_seed(0)).long()


def _data_parallel_gradient(rank: int) -> dict[str, torch.Tensor]:
    model = _model()
    parallel = torch.nn.parallel.DistributedDataParallel(model)
    loss, _ = parallel(_tokens()[4 * rank : 4 * rank + 4], (1.0, 0.5, 1.0))
    loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def test_two_ranks_have_the_gradient_of_one_process_at_the_same_global_batch(on_two_ranks: dict[str, list[Any]]) -> None:
    """Every parameter receives one: DistributedDataParallel needs no search for unused parameters."""
    outs = on_two_ranks["gradients"]
    model = _model()
    loss, _ = model(_tokens(), (1.0, 0.5, 1.0))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        for out in outs:
            torch.testing.assert_close(out[name], parameter.grad, rtol=1e-5, atol=1e-8, msg=name)


def test_outside_a_process_group_nothing_happens() -> None:
    x = torch.ones(2)
    assert not is_dist_avail_and_initialized()
    assert world_size() == 1
    assert all_reduce(x) is x
    with pytest.raises(UsageError, match="MEDIAN"):
        all_reduce(x, "MEDIAN")


BODIES = {"reductions": _reductions, "statistics": _statistics, "gradients": _data_parallel_gradient}
