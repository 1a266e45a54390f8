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
        # Kept position by position, so that each product writes its keys and values where they stay; seen by row and
        # head, (batch * heads, size, length) and (batch * heads, length, size), without a copy.
        rows = batch * heads
        self._keys = attention.w_k.new_empty((length, batch, heads * dim_qk))
        self._values = attention.w_v.new_empty((length, batch, heads * dim_v))
        self._query = attention.w_q.new_empty((batch, heads * dim_qk))
        self._query_by_head = self._query.view(rows, 1, dim_qk)
        self._keys_by_head = self._keys.view(length, rows, dim_qk).permute(1, 2, 0)
        self._values_by_head = self._values.view(length, rows, dim_v).transpose(0, 1)
        # Right factors of products; the scale of the scores goes into the queries'.
        self._to_query = (attention.w_q / math.sqrt(dim_qk)).flatten(0, 1).mT.contiguous()
        self._to_key = attention.w_k.flatten(0, 1).mT.contiguous()
        self._to_value = attention.w_v.flatten(0, 1).mT.contiguous()
        self._out = attention.w_o

    def step(self, x: Tensor, position: int) -> Tensor:
        """The block's output at `position` for its input there, (batch, dim) to (batch, dim)."""
        block = self._block
        normed = _norm(x, block.att_ln)
        torch.mm(normed, self._to_query, out=self._query)
        torch.mm(normed, self._to_key, out=self._keys[position])
        torch.mm(normed, self._to_value, out=self._values[position])
        # One query a row: two small products start sooner than scaled_dot_product_attention does.
        scores = torch.bmm(self._query_by_head, self._keys_by_head[:, :, : position + 1])
        y = torch.bmm(scores.softmax(-1), self._values_by_head[:, : position + 1])
        x = torch.addmm(x, y.view(x.shape[0], -1), self._out)
        return _linear(_linear(_norm(x, block.ffn_ln), block.ffn_fc1).relu_(), block.ffn_fc2).add_(x)


class IncrementalEncoder:
    """A causal `DeterministicEncoder`: the token at a position to the latent there."""

    def __init__(self, encoder: DeterministicEncoder, batch: int, length: int) -> None:
        context = encoder.ctx_encoder
        self._table = context.in_proj(context.emb.weight)
        self._positions = sinusoidal_positions(0, length, self._table.shape[-1], context.pos_enc.len_max, self._table).unbind()
        self._blocks = [IncrementalBlock(block, batch, length) for block in context.trunk if isinstance(block, TransformerBlock)]
        self._proj = encoder.proj

    def step(self, tokens: Tensor, position: int) -> Tensor:
        """Tokens (batch,) at `position` to the latent (batch, latent_size)."""
        h = F.embedding(tokens, self._table).add_(self._positions[position])
        for block in self._blocks:
            h = block.step(h, position)
        return _linear(h, self._proj)


class IncrementalObservation:
    """A `DiscreteObservation`: the latent at a position, and the token before it, to the logits there."""

    def __init__(self, observation: DiscreteObservation, batch: int, length: int) -> None:
        self._table = observation.token_proj(observation.token_emb.weight)
        self._start = observation.token_proj(observation.start_embedding(batch)).squeeze(1)
        self._latent_proj = observation.latent_proj
        self._positions = sinusoidal_positions(0, length, self._table.shape[-1], observation.pos_enc.len_max, self._table).unbind()
        self._block = IncrementalBlock(observation.block, batch, length)
        self._proj_out = observation.proj_out

    def step(self, z: Tensor, before: Tensor | None, position: int) -> Tensor:
        """Latent (batch, latent_size) and the token before (batch,), None at position 0, to logits (batch, vocab)."""
        h = _linear(z, self._latent_proj).add_(self._positions[position])
        h = h.add_(self._start if before is None else F.embedding(before, self._table))
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
