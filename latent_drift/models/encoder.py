"""Encoders from token sequences to latent trajectories."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_drift.errors import UsageError
from latent_drift.models.attention import AddPositionalEncoding, TransformerBlock
from latent_drift.models.embedding import TokenEmbedding

ENCODER_BLOCKS = 4
ENCODER_HEADS = 4
LONGEST_WAVELENGTH = 1e5  # of the positional encoding: beyond any sequence, so that no two positions share a code


def require_heads(owner: str, hidden_size: int, nb_heads: int) -> int:
    """The size of a head's keys.

    Raises:
        UsageError: more heads than features, where keys would have size 0.
    """
    if hidden_size < nb_heads:
        raise UsageError(f"{owner}: hidden_size must be at least the {nb_heads} heads of its attention; got {hidden_size!r}")
    return hidden_size // nb_heads


class PosteriorEncoder(nn.Module):
    """A transformer over tokens: (B, L) long to (B, L, hidden_size).

    Args:
        causal: features at t see tokens up to t only. Off by default: a posterior sees the whole sequence.

    Raises:
        UsageError: hidden_size below 4, the number of heads.
    """

    def __init__(self, vocab_size: int, embed_size: int, hidden_size: int, *, causal: bool = False) -> None:
        super().__init__()
        dim_keys = require_heads("PosteriorEncoder", hidden_size, ENCODER_HEADS)
        self.emb = TokenEmbedding(vocab_size, embed_size)
        self.in_proj = nn.Linear(embed_size, hidden_size)
        self.pos_enc = AddPositionalEncoding(len_max=LONGEST_WAVELENGTH)
        self.trunk = nn.Sequential(
            *[TransformerBlock(hidden_size, dim_keys, hidden_size, ENCODER_HEADS, causal=causal, dropout=0.0) for _ in range(ENCODER_BLOCKS)]
        )

    def forward(self, tokens: Tensor) -> Tensor:
        features: Tensor = self.trunk(self.pos_enc(self.in_proj(self.emb(tokens))))
        return features


class DeterministicEncoder(nn.Module):
    """Tokens (B, L) to a latent trajectory (B, L, latent_size).

    z_t depends on tokens up to t, so that a forecast of z_{t+1} from z_t is one, and z_0 does not know how the
    sequence ends.

    Args:
        smear_kernel_size: width of `local_smooth`, odd.
        smear_sigma: its standard deviation, in positions.
        legacy_compat: every z_t sees the whole sequence, as published.

    Buffers:
        smear_kernel: (smear_kernel_size,), a normalised Gaussian.
    """

    smear_kernel: Tensor

    def __init__(
        self,
        vocab_size: int,
        embed_size: int,
        hidden_size: int,
        latent_size: int,
        smear_kernel_size: int = 3,
        smear_sigma: float = 2.0,
        *,
        legacy_compat: bool = False,
    ) -> None:
        super().__init__()
        if smear_kernel_size < 1 or smear_kernel_size % 2 == 0:
            raise UsageError(f"DeterministicEncoder: smear_kernel_size must be odd, to be centred; got {smear_kernel_size!r}")
        if not smear_sigma > 0:
            raise UsageError(f"DeterministicEncoder: smear_sigma must be positive; got {smear_sigma!r}")
        self.ctx_encoder = PosteriorEncoder(vocab_size, embed_size, hidden_size, causal=not legacy_compat)
        self.proj = nn.Linear(hidden_size, latent_size)
        offsets = torch.arange(smear_kernel_size, dtype=torch.float32) - smear_kernel_size // 2
        kernel = torch.exp(-0.5 * (offsets / smear_sigma).square())
        self.register_buffer("smear_kernel", kernel / kernel.sum())

    def local_smooth(self, z: Tensor) -> Tensor:
        """`z` (B, L, D) averaged along L with `smear_kernel`, each end continued by its last value."""
        half = self.smear_kernel.numel() // 2
        if half == 0 or z.numel() == 0:
            return z
        padded = torch.cat([z[:, :1].expand(-1, half, -1), z, z[:, -1:].expand(-1, half, -1)], dim=1)
        kernel = self.smear_kernel.to(z.dtype)
        windows = padded.unfold(1, self.smear_kernel.numel(), 1)  # (B, L, D, width)
        return windows @ kernel

    def forward(self, tokens: Tensor) -> Tensor:
        z: Tensor = self.proj(self.ctx_encoder(tokens))
        return z
