import mpmath
import pytest
import torch

from latent_drift.errors import UsageError
from latent_drift.models.time_features import TimeAwareTransform


def test_frequencies_run_from_1_to_1000_evenly_in_their_logarithm():
    freqs = TimeAwareTransform(32).freqs.double()
    assert freqs.shape == (16,)
    expected = torch.logspace(0, 3, 16, dtype=torch.float64)
    assert torch.allclose(freqs, expected, rtol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_features_are_exact_to_the_dtype(dtype):
    module = TimeAwareTransform(32).to(dtype)
    t = torch.tensor([[0.5], [0.8125]], dtype=dtype)  # representable in every dtype
    features = module.embed_time(t)
    assert features.dtype == dtype
    assert features.shape == (2, 32)
    for row, time in enumerate((0.5, 0.8125)):
        for k, f in enumerate(module.freqs.double().tolist()):
            # float32 angles of up to 1000 radians are off by up to 3e-5
            tolerance = max(4e-5 if dtype != torch.float64 else 1e-12, 2 * torch.finfo(dtype).eps)
            assert abs(features[row, k].item() - float(mpmath.sin(time * f))) <= tolerance
            assert abs(features[row, 16 + k].item() - float(mpmath.cos(time * f))) <= tolerance


def test_naive_half_precision_angle_is_another_times():
    t, freqs = torch.tensor([[0.8125]]), TimeAwareTransform(32).freqs
    exact = (t.double() * freqs.double()).sin()
    naive = (t.half() * freqs.half()).sin().double()
    assert (naive - exact).abs().max() > 0.1
    assert (TimeAwareTransform(32).half().embed_time(t.half())[:, :16].double() - exact).abs().max() < 1e-3


def test_frequencies_stay_in_float32_through_casts_and_back():
    module = TimeAwareTransform(8)
    before = module.freqs.clone()
    module.half().bfloat16().float()
    assert torch.equal(module.freqs, before)
    assert module.double().freqs.dtype == torch.float64


@pytest.mark.parametrize("time_dim", [0, 1, 7, -2, 4.0])
def test_odd_or_empty_width_is_refused_at_construction(time_dim):
    with pytest.raises(UsageError, match="even"):
        TimeAwareTransform(time_dim)


def test_integer_times_give_features_in_the_frequencies_dtype():
    module = TimeAwareTransform(4)
    assert torch.equal(module.embed_time(torch.tensor([[2]])), module.embed_time(torch.tensor([[2.0]])))
