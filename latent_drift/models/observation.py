"""What is observed of a latent trajectory: a distribution over the token at every position."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributions import Categorical, Distribution

from latent_drift.errors import UsageError
from latent_drift.models.attention import AddPositionalEncoding, TransformerBlock
from latent_drift.models.embedding import TokenEmbedding
from latent_drift.models.encoder import LONGEST_WAVELENGTH, require_heads

LEGACY_START_TOKEN = 0  # `_`, the background character


class DiscreteObservation(nn.Module):
    """p(x_t | z_0..z_t, x_0..x_{t-1}): one causal transformer block over latents and the tokens before.

    Args:
        nb_heads: at most hidden_size.
        dropout: of the attention weights, in training.
        legacy_compat: start sequences behind the token `_`, as published. By default they start behind a zero
            embedding, which no token has, so that "nothing yet" is not "background".

    Raises:
        UsageError: more heads than hidden_size.
    """

    def __init__(
        self,
        latent_size: int,
        vocab_size: int,
        embed_size: int,
        hidden_size: int,
        nb_heads: int = 4,
        dropout: float = 0.0,
        *,
        legacy_compat: bool = False,
    ) -> None:
        super().__init__()
        dim_keys = require_heads("DiscreteObservation", hidden_size, nb_heads)
        self.token_emb = TokenEmbedding(vocab_size, embed_size)
        self.latent_proj = nn.Linear(latent_size, hidden_size)
        self.token_proj = nn.Linear(embed_size, hidden_size)
        self.pos_enc = AddPositionalEncoding(len_max=LONGEST_WAVELENGTH)
        self.block = TransformerBlock(hidden_size, dim_keys, hidden_size, nb_heads, causal=True, dropout=dropout)
        self.proj_out = nn.Linear(hidden_size, vocab_size)
        self.legacy_compat = legacy_compat

    def start_embedding(self, batch: int) -> Tensor:
        """What stands in front of the first token, (batch, 1, embed_size)."""
        weight = self.token_emb.weight
        row = weight[LEGACY_START_TOKEN] if self.legacy_compat else torch.zeros_like(weight[0])
        return row.expand(batch, 1, -1)

    def get_logits(self, z: Tensor, tokens: Tensor) -> Tensor:
        """Teacher-forced logits: z (B, L, latent) and tokens (B, L) to (B, L, vocab); position t sees tokens before t.

        Raises:
            UsageError: z and tokens differ in batch or length.
        """
        if z.shape[:2] != tokens.shape:
            raise UsageError(f"DiscreteObservation: z (B, L, latent) and tokens (B, L) must agree; got {tuple(z.shape)} and {tuple(tokens.shape)}")
        before = torch.cat([self.start_embedding(tokens.shape[0]), self.token_emb(tokens[:, :-1])], dim=1)[:, : tokens.shape[1]]
        h = self.token_proj(before) + self.latent_proj(z)
        logits: Tensor = self.proj_out(self.block(self.pos_enc(h)))
        return logits

    def forward(self, z: Tensor, tokens: Tensor) -> Distribution:
        """The distribution of the B * L tokens, a Categorical in float32 at least."""
        logits = self.get_logits(z, tokens).flatten(0, 1)
        return Categorical(logits=logits if logits.dtype == torch.float64 else logits.float())
