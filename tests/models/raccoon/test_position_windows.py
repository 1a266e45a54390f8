import pytest
import torch

from latent_drift.models.position_windows import WINDOW_STARTS, direct_windowed_means, window_count, windowed_means


def slowly(features, windows):
    """The definition, one channel at a time."""
    batch, length, channels = features.shape
    share = channels // (windows + 1)
    out = torch.zeros(batch, channels, dtype=features.dtype)
    for c in range(channels):
        g = c // share if windows else windows
        start, stop = (0, length)
        if g < windows:
            start, stop = WINDOW_STARTS[g], (WINDOW_STARTS[g + 1] if g + 1 < windows else length)
        part = features[:, start:stop, c]
        out[:, c] = part.mean(1) if part.shape[1] else 0.0
    return out


@pytest.mark.parametrize("length", [0, 1, 5, 11, 50, 300])
@pytest.mark.parametrize("channels", [1, 2, 7, 64])
def test_both_forms_are_the_definition(length, channels):
    torch.manual_seed(0)
    table = torch.randn(40, channels, dtype=torch.float64)
    tokens = torch.randint(40, (6, length))
    for windows in {0, window_count(channels)}:
        expected = slowly(table[tokens], windows)
        torch.testing.assert_close(windowed_means(tokens, table, windows), expected)
        torch.testing.assert_close(direct_windowed_means(table[tokens], windows), expected)


def test_zero_windows_are_the_plain_mean_and_blind_to_order():
    torch.manual_seed(0)
    table, tokens = torch.randn(40, 64), torch.randint(40, (3, 50))
    shuffled = tokens[:, torch.randperm(50)]
    torch.testing.assert_close(windowed_means(tokens, table, 0), table[tokens].mean(1))
    torch.testing.assert_close(windowed_means(tokens, table, 0), windowed_means(shuffled, table, 0))
    assert not torch.allclose(windowed_means(tokens, table, 8), windowed_means(shuffled, table, 8))
