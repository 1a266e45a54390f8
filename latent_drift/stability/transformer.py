"""A pre-norm transformer block whose residual branches are scaled by depth."""

from __future__ import annotations

from torch import Tensor, nn

from latent_drift.config.active import active
from latent_drift.errors import UsageError
from latent_drift.numerics.dtypes import require_real
from latent_drift.stability.attention import StableAttention
from latent_drift.stability.normalization import StableLayerNorm


class StableTransformerBlock(nn.Module):
    """x + s attn(norm1(x)), then x + s ffn(norm2(x)).

    Args:
        d_model: width.
        nhead: heads; must divide d_model.
        dim_feedforward: hidden width of `ffn`; 4 d_model by default.
        dropout: on attention weights and at the end of each branch.
        depth: how many such blocks are stacked; s = depth ** `initialization.residual_depth_power` of the active config (-1/2).

    Attributes:
        norm1, attn, norm2, ffn: the parts. `scale` is s.

    *Numerics*: normalisation comes first, so the identity path is never squashed; with s = depth**-0.5 the variance of the sum
    of all branches does not depend on depth (measured in `tests/stability/test_layers.py`).

    >>> import torch
    >>> block = StableTransformerBlock(16, 4, depth=4)
    >>> block.scale, block(torch.randn(2, 5, 16)).shape
    (0.5, torch.Size([2, 5, 16]))
    """

    def __init__(self, d_model: int, nhead: int, dim_feedforward: int | None = None, dropout: float = 0.0, depth: int = 1) -> None:
        super().__init__()
        if depth < 1:
            raise UsageError(f"StableTransformerBlock: depth must be at least 1; got {depth}")
        hidden = 4 * d_model if dim_feedforward is None else dim_feedforward
        self.norm1 = StableLayerNorm(d_model)
        self.attn = StableAttention(d_model, nhead, dropout)
        self.norm2 = StableLayerNorm(d_model)
        self.ffn = nn.Sequential(nn.Linear(d_model, hidden), nn.GELU(), nn.Dropout(dropout), nn.Linear(hidden, d_model))
        self.dropout = nn.Dropout(dropout)
        self.scale = depth ** active().initialization.residual_depth_power

    def forward(self, x: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """(batch, length, d_model) to the same; masks as in `StableAttention`.

        Raises:
            UsageError: as `StableAttention`.
        """
        require_real(x, "StableTransformerBlock")
        x = x + self.scale * self.dropout(self.attn(self.norm1(x), mask, is_causal))
        result: Tensor = x + self.scale * self.dropout(self.ffn(self.norm2(x)))
        return result
