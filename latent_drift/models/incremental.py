"""One position at a time: causal blocks with their keys and values kept.

A full pass for every new token costs O(length) positions a token; here each token costs one position and an
attention over what is kept. Results are those of the full pass to rounding. For inference: weights are read once,
when the walk starts, and no gradient flows.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from latent_drift.models.attention import TransformerBlock, sinusoidal_positions
from latent_drift.models.encoder import DeterministicEncoder
from latent_drift.models.observation import DiscreteObservation
from latent_drift.models.prior import PriorODE


def _norm(x: Tensor, layer: nn.LayerNorm) -> Tensor:
    return F.layer_norm(x, layer.normalized_shape, layer.weight, layer.bias, layer.eps)


def _linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


class IncrementalBlock:
    """A causal `TransformerBlock` walked position by position.

    Args:
        block: read now; later changes of its weights are not seen.
        batch, length: rows and the largest number of positions, whose keys and values are allocated at once.
    """

    def __init__(self, block: TransformerBlock, batch: int, length: int) -> None:
        attention = block.att_mh
        heads, dim_qk, _ = attention.w_q.shape
        dim_v = attention.w_v.shape[1]
        self._block = block
        self._rows, self._dim_qk, self._dim_v = batch * heads, dim_qk, dim_v
        # The scale of the scores goes into the queries' weights, and the three projections into one product.
        self._projections = torch.cat([w.flatten(0, 1) for w in (attention.w_q / math.sqrt(dim_qk), attention.w_k, attention.w_v)])
        self._split = [heads * dim_qk, heads * dim_qk, heads * dim_v]
        self._out = attention.w_o.mT.contiguous()
        self._keys = self._projections.new_empty((self._rows, length, dim_qk))
        self._values = self._projections.new_empty((self._rows, length, dim_v))

    def step(self, x: Tensor, position: int) -> Tensor:
        """The block's output at `position` for its input there, (batch, dim) to (batch, dim)."""
        block = self._block
        q, k, v = torch.split(F.linear(_norm(x, block.att_ln), self._projections), self._split, dim=-1)  # type: ignore[no-untyped-call]
        self._keys[:, position] = k.reshape(self._rows, self._dim_qk)
        self._values[:, position] = v.reshape(self._rows, self._dim_v)
        # One query a row: two small products start sooner than scaled_dot_product_attention does.
        scores = torch.bmm(q.reshape(self._rows, 1, self._dim_qk), self._keys[:, : position + 1].mT)
        y = torch.bmm(scores.softmax(-1), self._values[:, : position + 1])
        x = x + F.linear(y.view(x.shape[0], self._split[2]), self._out)
        return x + _linear(F.relu(_linear(_norm(x, block.ffn_ln), block.ffn_fc1)), block.ffn_fc2)


class IncrementalEncoder:
    """A causal `DeterministicEncoder`: the token at a position to the latent there."""

    def __init__(self, encoder: DeterministicEncoder, batch: int, length: int) -> None:
        context = encoder.ctx_encoder
        self._table = context.in_proj(context.emb.weight)
        self._positions = sinusoidal_positions(0, length, self._table.shape[-1], context.pos_enc.len_max, self._table)
        self._blocks = [IncrementalBlock(block, batch, length) for block in context.trunk if isinstance(block, TransformerBlock)]
        self._proj = encoder.proj

    def step(self, tokens: Tensor, position: int) -> Tensor:
        """Tokens (batch,) at `position` to the latent (batch, latent_size)."""
        h = self._table[tokens] + self._positions[position]
        for block in self._blocks:
            h = block.step(h, position)
        return _linear(h, self._proj)


class IncrementalObservation:
    """A `DiscreteObservation`: the latent at a position, and the token before it, to the logits there."""

    def __init__(self, observation: DiscreteObservation, batch: int, length: int) -> None:
        self._table = observation.token_proj(observation.token_emb.weight)
        self._start = observation.token_proj(observation.start_embedding(batch)).squeeze(1)
        self._latent_proj = observation.latent_proj
        self._positions = sinusoidal_positions(0, length, self._table.shape[-1], observation.pos_enc.len_max, self._table)
        self._block = IncrementalBlock(observation.block, batch, length)
        self._proj_out = observation.proj_out

    def step(self, z: Tensor, before: Tensor | None, position: int) -> Tensor:
        """Latent (batch, latent_size) and the token before (batch,), None at position 0, to logits (batch, vocab)."""
        h = self._start if before is None else self._table[before]
        h = h + _linear(z, self._latent_proj) + self._positions[position]
        return _linear(self._block.step(h, position), self._proj_out)


class IncrementalField:
    """The vector field of a `PriorODE` on a state (batch, D) and a number t, without a module call a layer."""

    def __init__(self, field: PriorODE) -> None:
        modules = list(field.drift_net)
        self._linears = [m for m in modules if isinstance(m, nn.Linear)]
        self._norms = [m for m in modules if isinstance(m, nn.LayerNorm)]
        self._residual = field.residual
        first = self._linears[0].weight
        self._of_state, self._of_time = first[:, :-1].contiguous(), first[:, -1].contiguous()

    def __call__(self, z: Tensor, t: float) -> Tensor:
        """dz/dt, (batch, D)."""
        # t is a constant of the call: its column of the first layer goes into the bias.
        h = F.silu(_norm(F.linear(z, self._of_state, torch.add(self._linears[0].bias, self._of_time, alpha=t)), self._norms[0]))
        for linear, norm in zip(self._linears[1:-1], self._norms[1:-1], strict=True):
            layer = F.silu(_norm(_linear(h, linear), norm))
            h = h + layer if self._residual else layer
        return _linear(_norm(h, self._norms[-1]), self._linears[-1])
