"""Means and variances at a large mean, merged, weighted, reduced over processes."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import pytest
import torch
import torch.multiprocessing as mp

from latent_drift.errors import UsageError
from latent_drift.numerics.moments import RunningMoments, welford
from tests.numerics.test_elementary import DTYPES, REFUSED


def _exact(values: list[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    return mean, math.fsum((v - mean) ** 2 for v in values) / (len(values) - 1)


def test_a_mean_of_1e8_with_variance_1_in_float32_and_the_textbook_formula_fails() -> None:
    noise = torch.randn(10_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = (1e8 + 64 * noise).float()  # neighbours are 8 apart there: the data's own variance is what counts
    mean, variance = _exact(x.double().tolist())
    textbook = (x * x).mean() - x.mean() ** 2
    assert abs(textbook.item() / variance - 1) > 1  # negative control: no digit
    got = welford(x)
    assert got.mean.item() == pytest.approx(mean, rel=1e-7)
    assert got.variance.item() == pytest.approx(variance, rel=1e-6)
    y = 1e8 + noise  # variance 1, in float64
    running = RunningMoments(dim=None)
    for chunk in y.split(97):
        running.update(chunk)
    assert running.variance.item() == pytest.approx(_exact(y.tolist())[1], rel=1e-9)


def test_running_moments_of_float32_batches_at_a_mean_of_1e8() -> None:
    noise = torch.randn(1_000, 4, generator=torch.Generator().manual_seed(0))
    x = 1e8 + 64 * noise
    running = RunningMoments()
    for chunk in x.split(10):
        running.update(chunk)
    exact = torch.tensor([_exact(column) for column in x.double().t().tolist()], dtype=torch.float64)
    assert torch.allclose(running.mean, exact[:, 0], rtol=1e-14)
    assert torch.allclose(running.variance, exact[:, 1], rtol=1e-10)


@DTYPES
def test_welford_matches_float64(dtype: torch.dtype) -> None:
    x = (torch.randn(6, 50, generator=torch.Generator().manual_seed(1)) * 3 + 10).to(dtype)
    mean, variance = welford(x, 1)
    eps = torch.finfo(dtype).eps
    assert mean.dtype == variance.dtype == dtype
    assert torch.allclose(mean.double(), x.double().mean(1), rtol=2 * eps, atol=0)
    assert torch.allclose(variance.double(), x.double().var(1), rtol=50 * eps, atol=0)


def test_half_precision_sums_do_not_overflow() -> None:
    x = torch.full((1000,), 300.0, dtype=torch.float16)
    x[::2] = 310
    assert (x * x).sum().isinf()  # negative control
    assert welford(x).mean.item() == 305
    assert welford(x).variance.item() == pytest.approx(25, rel=2e-3)
    huge = torch.tensor([3e38, 3.2e38])
    assert huge.sum().isinf()
    assert welford(huge).mean.item() == pytest.approx(3.1e38, rel=1e-6)


def test_dims_keepdim_correction_and_few_samples() -> None:
    x = torch.randn(3, 4, 5, dtype=torch.float64)
    for dim in (0, -1, (0, 2), None):
        for correction in (0, 1):
            got = welford(x, dim, correction=correction, keepdim=True)
            assert torch.allclose(got.variance, torch.var(x, dim, correction=correction, keepdim=True), rtol=1e-12)
            assert torch.allclose(got.mean, torch.mean(x, dim if dim is not None else (0, 1, 2), keepdim=True), rtol=1e-12, atol=1e-15)
    assert welford(x, 1).mean.shape == (3, 5)
    assert welford(torch.tensor([2.0])).variance.isnan()
    assert welford(torch.tensor([2.0]), correction=0).variance.item() == 0
    assert welford(torch.empty(0)).mean.isnan()
    assert welford(torch.tensor(3.0), correction=0) == (3.0, 0.0)


def test_weights_count_like_repeated_samples() -> None:
    x = torch.tensor([1.0, 4.0, 6.0], dtype=torch.float64)
    w = torch.tensor([2.0, 1.0, 3.0])
    repeated = torch.tensor([1, 1, 4, 6, 6, 6], dtype=torch.float64)
    assert welford(x, weights=w).variance.item() == pytest.approx(repeated.var().item())
    running = RunningMoments(dim=None).update(x[:2], w[:2]).update(x[2:], w[2:])
    assert running.count.item() == 6
    assert running.mean.item() == pytest.approx(4)
    assert running.variance.item() == pytest.approx(statistics.variance(repeated.tolist()))
    masked = RunningMoments(dim=0).update(torch.ones(2, 2), torch.tensor([[1.0, 0.0], [1.0, 0.0]])).update(torch.full((2, 2), 3.0))
    assert masked.mean.tolist() == [2.0, 3.0]
    assert masked.count.tolist() == [4, 2]


def test_merging_equals_seeing_everything_in_any_split() -> None:
    x = torch.randn(100, 3, dtype=torch.float64) + 1e6
    whole = RunningMoments().update(x)
    left, right = RunningMoments().update(x[:7]), RunningMoments().update(x[7:60]).update(x[60:])
    merged = left.merge(right).merge(RunningMoments())
    assert torch.allclose(merged.mean, whole.mean, rtol=1e-15)
    assert torch.allclose(merged.variance, whole.variance, rtol=1e-12)
    restored = RunningMoments.from_state_dict(merged.state_dict())
    assert torch.equal(restored.variance, merged.variance)
    assert RunningMoments().update(torch.empty(0, 3)).count == 0
    with pytest.raises(UsageError, match=r"shape \(3,\), the new ones \(2,\)"):
        merged.update(torch.zeros(4, 2))


def test_nan_is_not_hidden_and_variance_is_never_negative() -> None:
    assert RunningMoments().update(torch.tensor([1.0, math.nan])).mean.isnan()
    assert welford(torch.full((1000,), 1e8 + 8)).variance.item() == 0
    assert welford(torch.full((999,), 0.1)).variance.item() >= 0


def test_welford_differentiates_and_compiles() -> None:
    x = torch.randn(2, 5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: tuple(welford(v, 1)), x)
    assert torch.autograd.gradgradcheck(lambda v: tuple(welford(v, 1)), x)
    torch._dynamo.reset()
    compiled = torch.compile(lambda v: welford(v, 1).variance, fullgraph=True, backend="aot_eager")
    assert torch.allclose(compiled(x), x.var(1))


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_not_real_and_dense_is_refused_by_name(kind: str) -> None:
    with pytest.raises(UsageError, match=kind):
        welford(REFUSED[kind]())


def _rank(rank: int, file: str, out: str) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{file}", rank=rank, world_size=2)
    x = torch.arange(10.0).reshape(10, 1)
    moments = RunningMoments()
    if rank == 0:
        moments.update(x)  # the other process has seen nothing
    moments.all_reduce()
    torch.save(moments.state_dict(), f"{out}/{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_processes_end_with_the_same_statistics(tmp_path: Path) -> None:
    mp.spawn(_rank, (str(tmp_path / "store"), str(tmp_path)), nprocs=2)
    states = [torch.load(tmp_path / f"{rank}.pt") for rank in range(2)]
    for key in ("count", "mean", "squares"):
        assert torch.equal(states[0][key], states[1][key])
    assert RunningMoments.from_state_dict(states[1]).variance.item() == pytest.approx(statistics.variance(range(10)))
