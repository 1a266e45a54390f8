"""Sequences drawn from a latent ODE model, from its learned prior."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from latent_drift.errors import NumericalError
from latent_drift.models.incremental import IncrementalEncoder, IncrementalField, IncrementalObservation
from latent_drift.models.latent_ode import DeterministicLatentODE
from latent_drift.models.sizes import require_size
from latent_drift.solvers.ode import solve_ode

if TYPE_CHECKING:
    from collections.abc import Iterator

Walk = Callable[[Tensor | None, int], Tensor]
"""The token before a position (None at 0) and the position, to the logits there."""


def sample_sequences_ode(
    model: DeterministicLatentODE,
    seq_len: int,
    n_samples: int,
    device: torch.device | str | None = None,
    *,
    cached: bool = True,
) -> tuple[Tensor, Tensor]:
    """Two groups of sequences drawn from the model: all from one z_0, and each from a z_0 of its own.

    z_0 is drawn from the learned prior `model.p_init_distr`. From there the model walks the recursion it was trained
    on: the token at t is drawn given the forecast of z_t and the tokens before, encoded into z_t, and z_{t+1} is
    forecast by one Euler step of `model.p_ode` (dt = 1 / (seq_len - 1)).

    Args:
        model: put into evaluation mode for the time of the call. It stays where it is.
        seq_len: tokens a sequence, at least 1.
        n_samples: sequences in each group, at least 0.
        device: of the results; None for the model's.
        cached: keep keys and values between tokens. False computes every token from the whole sequence: the same
            tokens for the same seed, length / 2 times slower.

    Returns:
        (tokens with one shared z_0, tokens with a z_0 each), each long (n_samples, seq_len).

    Raises:
        UsageError: seq_len or n_samples out of range.
        NumericalError: the model's logits are not finite.

    Under `legacy_compat` z_0 comes from N(0, I), the whole path from `solve_ode` before the first token, and the
    second group is drawn after the first.
    """
    require_size(seq_len, "seq_len", "sample_sequences_ode", at_least=1)
    require_size(n_samples, "n_samples", "sample_sequences_ode", at_least=0)
    draw = _draw_along_path if model.legacy_compat else _draw
    with torch.inference_mode(), _evaluating(model):
        shared, own = draw(model, seq_len, n_samples, cached)
    # copies made outside are ordinary tensors again
    return shared.clone().to(device or shared.device), own.clone().to(device or own.device)


@contextmanager
def _evaluating(model: DeterministicLatentODE) -> Iterator[None]:
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def _draw(model: DeterministicLatentODE, seq_len: int, n_samples: int, cached: bool) -> tuple[Tensor, Tensor]:
    """Both groups in one walk of 2 n rows: a step costs as much for 16 rows as for 8."""
    prior = model.p_init_distr
    noise = torch.randn((1 + n_samples, model.latent_size), dtype=prior.m.dtype, device=prior.m.device)
    starts = prior.m + prior.log_scale().exp() * noise
    z0 = torch.cat([starts[:1].expand(n_samples, -1), starts[1:]])
    walk = _CachedFilter(model, z0, seq_len) if cached else _PlainFilter(model, z0, seq_len)
    tokens = _draw_tokens(walk, z0, seq_len)
    return tokens[:n_samples], tokens[n_samples:]


def _draw_along_path(model: DeterministicLatentODE, seq_len: int, n_samples: int, cached: bool) -> tuple[Tensor, Tensor]:
    """The published sampling: one group after the other, along the vector field's path from N(0, I)."""
    like = model.p_init_distr.m
    groups = []
    for starts in (1, n_samples):
        z0 = torch.randn((starts, model.latent_size), dtype=like.dtype, device=like.device).expand(n_samples, -1)
        path = solve_ode(model.p_ode, z0, 0.0, 1.0, seq_len - 1).transpose(0, 1)
        groups.append(_draw_tokens_in_order(_CachedPath(model, path) if cached else _PlainPath(model, path), z0, seq_len))
    return groups[0], groups[1]


def _draw_tokens(walk: Walk, z0: Tensor, seq_len: int) -> Tensor:
    """Tokens (rows, seq_len) by the Gumbel-max rule, their noise drawn in one call before the walk."""
    tokens = torch.empty((z0.shape[0], seq_len), dtype=torch.long, device=z0.device)
    if z0.shape[0] == 0:
        return tokens
    noise: list[Tensor] = []
    seen: list[Tensor] = []
    before: Tensor | None = None
    for position in range(seq_len):
        logits = _widened(walk(before, position))
        if not noise:
            noise = list(torch.empty((seq_len, *logits.shape), dtype=logits.dtype, device=logits.device).exponential_().log_().unbind())
        before = (logits - noise[position]).argmax(-1)
        tokens[:, position] = before
        seen.append(logits)
    _require_finite(torch.stack(seen).isfinite().flatten(1).all(-1))
    return tokens


def _draw_tokens_in_order(walk: Walk, z0: Tensor, seq_len: int) -> Tensor:
    """Tokens (rows, seq_len), one categorical draw a position from the global generator, as published."""
    tokens = torch.empty((z0.shape[0], seq_len), dtype=torch.long, device=z0.device)
    before: Tensor | None = None
    for position in range(seq_len if z0.shape[0] else 0):
        probabilities = _widened(walk(before, position)).softmax(-1)
        if not bool(probabilities.isfinite().all()):
            raise _not_finite(position)
        before = torch.multinomial(probabilities, 1).squeeze(-1)
        tokens[:, position] = before
    return tokens


def _widened(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _require_finite(by_position: Tensor) -> None:
    if not bool(by_position.all()):
        raise _not_finite(int((~by_position).nonzero()[0]))


def _not_finite(position: int) -> NumericalError:
    return NumericalError(f"sample_sequences_ode: the logits at position {position} are not finite; the model's weights have diverged")


class _CachedFilter:
    """Forecast, observe, encode, one position at a time."""

    def __init__(self, model: DeterministicLatentODE, z0: Tensor, seq_len: int) -> None:
        batch = z0.shape[0]
        self._encoder = IncrementalEncoder(model.encoder, batch, seq_len)
        self._observation = IncrementalObservation(model.p_observe, batch, seq_len)
        self._field = IncrementalField(model.p_ode)
        self._z = z0
        self._steps = max(1, seq_len - 1)

    def __call__(self, before: Tensor | None, position: int) -> Tensor:
        if before is not None:
            z = self._encoder.step(before, position - 1)
            self._z = z + self._field(z, (position - 1) / self._steps) / self._steps
        return self._observation.step(self._z, before, position)


class _PlainFilter:
    """The same through the model's own methods, over the whole sequence every time."""

    def __init__(self, model: DeterministicLatentODE, z0: Tensor, seq_len: int) -> None:
        self._model = model
        self._path = z0.unsqueeze(1)
        self._tokens = torch.empty((z0.shape[0], 0), dtype=torch.long, device=z0.device)
        self._steps = max(1, seq_len - 1)

    def __call__(self, before: Tensor | None, position: int) -> Tensor:
        model = self._model
        if before is not None:
            self._tokens = torch.cat([self._tokens, before.unsqueeze(1)], dim=1)
            z = model.encode(self._tokens)[:, -1]
            t = torch.full((), (position - 1) / self._steps, dtype=z.dtype, device=z.device)
            self._path = torch.cat([self._path, (z + model.p_ode(z, t) / self._steps).unsqueeze(1)], dim=1)
        unknown = self._tokens.new_zeros((self._tokens.shape[0], 1))  # the last token is not looked at
        return model.decode_logits(self._path, torch.cat([self._tokens, unknown], dim=1))[:, -1]


class _CachedPath:
    """Observations along a path that is known from the start."""

    def __init__(self, model: DeterministicLatentODE, path: Tensor) -> None:
        self._path = path
        self._observation = IncrementalObservation(model.p_observe, path.shape[0], path.shape[1])

    def __call__(self, before: Tensor | None, position: int) -> Tensor:
        return self._observation.step(self._path[:, position], before, position)


class _PlainPath:
    """The same by a full pass a token."""

    def __init__(self, model: DeterministicLatentODE, path: Tensor) -> None:
        self._model = model
        self._path = path
        self._tokens = torch.zeros(path.shape[:2], dtype=torch.long, device=path.device)

    def __call__(self, before: Tensor | None, position: int) -> Tensor:
        if before is not None:
            self._tokens[:, position - 1] = before
        return self._model.decode_logits(self._path, self._tokens)[:, position]
