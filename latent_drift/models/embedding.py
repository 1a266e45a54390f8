"""Token embedding with an error that names the token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from latent_drift.errors import UsageError
from latent_drift.models.alphabet import UnknownTokenError


class TokenEmbedding(nn.Embedding):
    """`nn.Embedding` (same parameters, same initialisation) that says which token it does not know.

    Raises:
        UnknownTokenError (an IndexError): a token outside [0, num_embeddings). On a CPU; on an accelerator the
            kernel's own assertion speaks, since a look at the tokens would cost a synchronisation a step.
        UsageError: tokens that are not integers.
    """

    def forward(self, input: Tensor) -> Tensor:
        if input.dtype not in (torch.int64, torch.int32):
            if input.is_floating_point() or input.is_complex() or input.dtype == torch.bool:
                raise UsageError(f"tokens must be integers (torch.long); got {tuple(input.shape)} of {input.dtype}")
            input = input.long()
        try:
            return super().forward(input)
        except IndexError:
            unknown = input[(input < 0) | (input >= self.num_embeddings)]
            if unknown.numel() == 0:
                raise
            message = f"token {int(unknown[0])} is outside the vocabulary of {self.num_embeddings} (0 to {self.num_embeddings - 1})"
            raise UnknownTokenError(f"{message}; {unknown.numel()} of {input.numel()} tokens are") from None
