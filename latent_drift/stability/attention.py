"""Attention over torch's scaled_dot_product_attention, with an answer for queries that may attend to nothing."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_drift.errors import UsageError
from latent_drift.numerics.dtypes import require_real


def keys_per_query(
    mask: Tensor | None, is_causal: bool, queries: int, keys: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor | None, Tensor | None]:
    """(mask for SDPA in which every query has a key, which queries had none); both None where nothing is masked.

    Boolean masks: True takes part (as in SDPA). Additive masks may be of any floating dtype; what does not fit `dtype`
    becomes -inf, that is masked: -1e9 in float16 means what it was meant to.
    """
    if mask is not None and not mask.is_floating_point():
        mask = mask != 0
    if is_causal:
        causal = torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
        if mask is None:
            mask = causal
        elif mask.dtype == torch.bool:
            mask = mask & causal
        else:
            mask = mask.masked_fill(~causal, float("-inf"))
    if mask is None:
        return None, None
    if mask.dtype == torch.bool:
        empty = ~mask.any(-1, keepdim=True)
        return mask | empty, empty
    mask = mask.to(dtype)
    empty = (mask == float("-inf")).all(-1, keepdim=True)
    return torch.where(empty, torch.zeros_like(mask), mask), empty


class StableAttention(nn.Module):
    """Multi-head self-attention with the parameters of `nn.MultiheadAttention(d_model, n_heads)`.

    Args:
        d_model: width of the input and of the output.
        n_heads: number of heads; must divide d_model.
        dropout: probability on the attention weights while training.
        use_stable_softmax: whether queries with no key give 0; otherwise they give what SDPA gives.

    State-dict keys are torch's (`in_proj_weight`, `in_proj_bias`, `out_proj.weight`, `out_proj.bias`), so its weights
    load; initialisation is torch's too.

    *Numerics*: `F.scaled_dot_product_attention` underneath, any dtype. A query that may attend to nothing contributes an
    output of exactly 0, with gradient 0, for boolean and additive masks and any combination with `is_causal`. Filling with -1e9
    instead spreads such a row over the forbidden keys, and raises in float16. Torch's fused kernels differentiate once: for second derivatives
    run it under `torch.nn.attention.sdpa_kernel(SDPBackend.MATH)`.

    >>> import torch
    >>> attention = StableAttention(8, 2)
    >>> mask = torch.tensor([[True, False], [False, False]])  # the second query may see nothing
    >>> attention(torch.randn(1, 2, 8), mask)[0, 1].abs().max().item()
    0.0
    """

    def __init__(self, d_model: int, n_heads: int, dropout: float = 0.0, use_stable_softmax: bool = True) -> None:
        super().__init__()
        if n_heads < 1 or d_model < n_heads or d_model % n_heads:
            raise UsageError(f"StableAttention: n_heads must divide d_model; got d_model={d_model}, n_heads={n_heads}")
        self.d_model = d_model
        self.n_heads = n_heads
        self.dropout = dropout
        self.use_stable_softmax = use_stable_softmax
        self.in_proj_weight = nn.Parameter(torch.empty(3 * d_model, d_model))
        self.in_proj_bias = nn.Parameter(torch.empty(3 * d_model))
        self.out_proj = nn.Linear(d_model, d_model)
        self._init_weights()

    def _init_weights(self) -> None:
        """torch's initialisation of MultiheadAttention: Xavier on the joint projection, zero biases."""
        nn.init.xavier_uniform_(self.in_proj_weight)
        nn.init.zeros_(self.in_proj_bias)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, x: Tensor, mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Self-attention of `x` (batch, length, d_model); same shape and dtype.

        Args:
            mask: (length, length), (batch, length, length), or anything that broadcasts to (batch, heads, length, length); boolean or integer
                (nonzero takes part) or additive. For padding, pass (batch, 1, length).
            is_causal: whether position i may see only positions up to i; joined with the mask.

        Raises:
            UsageError: `x` does not have that shape, is complex, integer or not strided, or the mask does not broadcast.
        """
        require_real(x, "StableAttention")
        if x.dim() != 3 or x.shape[-1] != self.d_model:
            raise UsageError(f"StableAttention: x must be (batch, length, {self.d_model}); got {tuple(x.shape)}")
        batch, length, _ = x.shape
        q, k, v = (
            F.linear(x, self.in_proj_weight, self.in_proj_bias)
            .view(batch, length, 3, self.n_heads, self.d_model // self.n_heads)
            .permute(2, 0, 3, 1, 4)
        )
        if mask is not None and mask.dim() == 3:
            mask = mask[:, None]
        wanted = (batch, self.n_heads, length, length)
        if mask is not None and (mask.dim() > 4 or any(m not in (1, w) for m, w in zip(reversed(mask.shape), reversed(wanted), strict=False))):
            raise UsageError(f"StableAttention: mask must broadcast to {wanted}; got {tuple(mask.shape)}")
        if self.use_stable_softmax:
            mask, empty = keys_per_query(mask, is_causal, length, length, q.dtype, x.device)
            is_causal = False
        else:
            empty = None
        context = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=self.dropout if self.training else 0.0, is_causal=is_causal)
        if empty is not None:
            context = torch.where(empty, torch.zeros_like(context), context)
        result: Tensor = self.out_proj(context.transpose(1, 2).reshape(batch, length, self.d_model))
        if empty is not None:
            # without any key in any head the layer says nothing at all, its bias included
            silent = empty.expand(*empty.shape[:-2], length, 1)
            silent = silent.reshape(-1, length, 1) if silent.dim() == 2 else silent.all(1)
            result = torch.where(silent, torch.zeros_like(result), result)
        return result
