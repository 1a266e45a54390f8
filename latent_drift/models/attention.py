"""Attention with bare projection parameters, sinusoidal positions, and the pre-norm block of both."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_drift.errors import UsageError


def sinusoidal_positions(start: int, end: int, dim: int, len_max: float, like: Tensor) -> Tensor:
    """Encodings of positions start..end-1, (end - start, dim), in the dtype and on the device of `like`.

    Feature j is sin(t / len_max**((j - j % 2) / dim) + (j % 2) pi / 2): sines at even, cosines at odd j.

    *Numerics*: angles are formed in float32 at least; in float16 position 2049 does not exist.
    """
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    t = torch.arange(start, end, dtype=dtype, device=like.device).unsqueeze(-1)
    j = torch.arange(dim, device=like.device)
    odd = j % 2
    encoding = torch.sin(t / (len_max ** ((j - odd).to(dtype) / dim)) + math.pi / 2 * odd.to(dtype))
    return encoding.to(like.dtype)


class AddPositionalEncoding(nn.Module):
    """x (B, L, D) + sinusoidal positions, any L and D, in x's dtype.

    Args:
        len_max: the longest wavelength over 2 pi, positive.
    """

    def __init__(self, len_max: float) -> None:
        super().__init__()
        if not len_max > 0:
            raise UsageError(f"AddPositionalEncoding: len_max must be positive; got {len_max!r}")
        self.len_max = len_max

    def forward(self, x: Tensor) -> Tensor:
        return x + sinusoidal_positions(0, x.shape[-2], x.shape[-1], self.len_max, x)


def _projection(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(*shape) / math.sqrt(shape[-1]))


class QKVAttention(nn.Module):
    """Multi-head self-attention, (B, L, dim_in) to (B, L, dim_in), without biases.

    Parameters:
        w_q, w_k: (nb_heads, dim_qk, dim_in); w_v: (nb_heads, dim_v, dim_in); w_o: (dim_v * nb_heads, dim_in).
        All start normal with variance 1 / (last size), so that scores start at unit variance.

    Args:
        causal: position t sees positions up to t.
        dropout: probability of dropping an attention weight in training, in [0, 1).

    Raises:
        UsageError: a size below 1. With more heads than features the size of a head rounds down to 0, and the
            published form then computed nothing, silently.

    *Numerics*: `scaled_dot_product_attention`; its causal rows always see themselves, so no row is empty.
    """

    def __init__(self, dim_in: int, dim_qk: int, dim_v: int, nb_heads: int = 1, causal: bool = False, dropout: float = 0.0) -> None:
        super().__init__()
        wrong = [
            f"{name}={value!r}" for name, value in (("dim_in", dim_in), ("dim_qk", dim_qk), ("dim_v", dim_v), ("nb_heads", nb_heads)) if value < 1
        ]
        if wrong:
            advice = "A head's size is the width over the heads: use fewer heads or a wider model"
            raise UsageError(f"QKVAttention: sizes must be at least 1; got {', '.join(wrong)}. {advice}")
        if not 0.0 <= dropout < 1.0:
            raise UsageError(f"QKVAttention: dropout must be in [0, 1); got {dropout!r}")
        self.w_q = _projection(nb_heads, dim_qk, dim_in)
        self.w_k = _projection(nb_heads, dim_qk, dim_in)
        self.w_v = _projection(nb_heads, dim_v, dim_in)
        self.w_o = _projection(dim_v * nb_heads, dim_in)
        self.nb_heads = nb_heads
        self.causal = causal
        self.dropout = dropout

    def _heads(self, x: Tensor, weight: Tensor) -> Tensor:
        """(B, L, dim_in) to (B, nb_heads, L, size of a head)."""
        batch, length, _ = x.shape
        return F.linear(x, weight.flatten(0, 1)).view(batch, length, self.nb_heads, weight.shape[1]).transpose(1, 2)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self._heads(x, self.w_q), self._heads(x, self.w_k), self._heads(x, self.w_v)
        y: Tensor = F.scaled_dot_product_attention(q, k, v, dropout_p=self.dropout if self.training else 0.0, is_causal=self.causal)
        return y.transpose(1, 2).flatten(2) @ self.w_o


class TransformerBlock(nn.Module):
    """x + attention(norm(x)), then that + feed-forward(norm(that)): pre-norm, ReLU, (B, L, dim_model) to the same.

    Args:
        dim_model: width; a head's values have dim_model // nb_heads.
        dim_keys: size of a head's queries and keys.
        dim_hidden: width of the feed-forward layer.

    Raises:
        UsageError: more heads than dim_model, or a size below 1.
    """

    def __init__(self, dim_model: int, dim_keys: int, dim_hidden: int, nb_heads: int, causal: bool, dropout: float) -> None:
        super().__init__()
        if not 1 <= nb_heads <= dim_model:
            raise UsageError(f"TransformerBlock: nb_heads must be between 1 and dim_model={dim_model}, or heads would have size 0; got {nb_heads!r}")
        if dim_hidden < 1:
            raise UsageError(f"TransformerBlock: dim_hidden must be at least 1; got {dim_hidden!r}")
        self.att_ln = nn.LayerNorm(dim_model)
        self.att_mh = QKVAttention(dim_model, dim_keys, dim_model // nb_heads, nb_heads=nb_heads, causal=causal, dropout=dropout)
        self.ffn_ln = nn.LayerNorm(dim_model)
        self.ffn_fc1 = nn.Linear(dim_model, dim_hidden)
        self.ffn_fc2 = nn.Linear(dim_hidden, dim_model)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.att_mh(self.att_ln(x))
        hidden = F.relu(self.ffn_fc1(self.ffn_ln(x)))
        out: Tensor = x + self.ffn_fc2(hidden)
        return out
