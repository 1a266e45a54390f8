"""Online updates of the log classifier: what arrives is learned at once, beside remembered messages."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor
from torch.nn import functional as F

from latent_drift.models.flat_weights import FlatWeights

if TYPE_CHECKING:
    from latent_drift.models.raccoon import RaccoonLogClassifier

REPLAYED: Final = 16
"""Remembered messages that join an update."""


class ContinualUpdate:
    """The optimizer of the adaptation, and the update that it makes.

    An update takes the messages that arrive and up to 16 remembered ones: one AdamW step at the model's `adaptation_rate`, clipped to
    the config's norm for online learning, skipped if loss or gradient is not finite. Each message has its own score, 1 - p(its label): what the
    model was unsure of is remembered and repeated, and replayed messages get their new scores. The classes share a full memory evenly.
    """

    def __init__(self) -> None:
        self._weights: FlatWeights | None = None
        self._loaded: dict[str, Any] | None = None

    def __getstate__(self) -> dict[str, Any]:
        # A copy of the model gets an optimizer over its own parameters, at its next update.
        return {"_weights": None, "_loaded": copy.deepcopy(self.state_dict()["optimizer"])}

    @property
    def started(self) -> bool:
        """Whether there is any state worth saving."""
        return self._weights is not None or self._loaded is not None

    def update(self, model: RaccoonLogClassifier, tokens: Tensor, labels: Tensor) -> dict[str, float]:
        """Learn from tokens (B, L) and labels (B,).

        Returns:
            The loss; the gradient's norm before clipping; the accuracy on the arriving messages before learning from them;
            and `skipped`, 1.0 if the weights were left alone.
        """
        if tokens.shape[0] == 0:
            return {"loss": 0.0, "grad_norm": 0.0, "accuracy": 0.0, "skipped": 1.0}
        device = next(model.parameters()).device
        with torch.inference_mode(False), torch.enable_grad():
            # clones: what was made under inference mode can be kept neither for a gradient nor in the memory
            return self._learn(model, tokens.to(device, copy=tokens.is_inference()), labels.to(device, torch.long, copy=labels.is_inference()))

    def _learn(self, model: RaccoonLogClassifier, tokens: Tensor, labels: Tensor) -> dict[str, float]:
        memory = model.memory
        slots = memory.sample_indices(min(REPLAYED, len(memory))) if len(memory) else []
        batches = _batches(tokens, labels, [memory.buffer[i] for i in slots])
        correct, surprise = _scores(model, batches)
        outcome = self._step(model, batches)
        for slot, score in zip(slots, surprise[len(labels) :], strict=True):
            memory.update_score(slot, score)
        kept_tokens, kept_labels, classes = tokens.cpu(), labels.cpu(), labels.tolist()
        for i, label in enumerate(classes):
            memory.add((kept_tokens[i], kept_labels[i]), surprise[i], group=label)
        return outcome | {"accuracy": sum(correct[: len(labels)]) / len(labels)}

    def _step(self, model: RaccoonLogClassifier, batches: Sequence[_Batch]) -> dict[str, float]:
        weights = self._ready(model)
        weights.clear_gradients()
        total = sum(len(batch.labels) for batch in batches)
        loss_value = 0.0
        was_training = model.training
        model.train()  # the noise of the path is part of the loss
        try:
            for batch in batches:
                loss = model(batch.tokens, batch.labels)[0] * (len(batch.labels) / total)
                (loss * weights.loss_scale).backward()  # type: ignore[no-untyped-call]
                loss_value += loss.item()
        finally:
            model.train(was_training)
        outcome = weights.step(model.config.gradient.online_max_norm)
        weights.clear_gradients()
        return {"loss": loss_value, "grad_norm": outcome.grad_norm, "skipped": float(outcome.skipped)}

    def _ready(self, model: RaccoonLogClassifier) -> FlatWeights:
        """The optimizer, made on first use and again when the model was cast or moved (its moments are cast along)."""
        weights = self._weights
        if weights is None or not weights.stands_for(model.parameters()):
            state = self._loaded if weights is None else weights.state_dict()
            weights = self._weights = FlatWeights(model.parameters(), model.adaptation_rate, config=model.config)
            if state is not None:
                weights.load_state_dict(state)
            self._loaded = None
        weights.lr = model.adaptation_rate
        return weights

    def state_dict(self) -> dict[str, Any]:
        """The optimizer's state: its moments outlive a restart."""
        return {"optimizer": self._loaded if self._weights is None else self._weights.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take a saved state; it reaches the optimizer at the next update."""
        self._weights = None
        self._loaded = state["optimizer"]


class LegacyContinualUpdate(ContinualUpdate):
    """The published update: plain gradient descent at the rate the model was built with, one score for a whole batch, nothing learned
    before 32 messages are remembered, scores never refreshed. Its state is not saved."""

    STARTS_AT: Final = 32

    def __init__(self) -> None:
        super().__init__()
        self._sgd: torch.optim.Optimizer | None = None

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | {"_sgd": None}

    def update(self, model: RaccoonLogClassifier, tokens: Tensor, labels: Tensor) -> dict[str, float]:
        """As published; the same keys as the corrected update."""
        if self._sgd is None:
            self._sgd = torch.optim.SGD(model.parameters(), lr=model.adaptation_rate)
        with torch.no_grad():
            probabilities = model.classify(model.sample_latent(*model.encode(tokens))).softmax(dim=-1)
            score = probabilities.amax(dim=-1).mean().item()
            accuracy = (probabilities.argmax(dim=-1) == labels).double().mean().item()
        for i in range(len(labels)):
            model.memory.add((tokens[i], labels[i]), score)
        if len(model.memory) < self.STARTS_AT:
            return {"loss": 0.0, "grad_norm": 0.0, "accuracy": accuracy, "skipped": 1.0}
        replayed = model.memory.sample(REPLAYED, tokens.device)
        loss, _ = model(torch.stack([t for t, _ in replayed]), torch.stack([y for _, y in replayed]))
        self._sgd.zero_grad()
        loss.backward()
        self._sgd.step()
        return {"loss": loss.item(), "grad_norm": 0.0, "accuracy": accuracy, "skipped": 0.0}


class _Batch:
    """Messages of one length, and their places in the whole update."""

    def __init__(self, tokens: Tensor, labels: Tensor, places: list[int]) -> None:
        self.tokens, self.labels, self.places = tokens, labels, places


def _batches(tokens: Tensor, labels: Tensor, replayed: Sequence[tuple[Tensor, Tensor]]) -> list[_Batch]:
    """The arriving messages and the replayed ones, those of the same length together."""
    by_length: dict[int, list[int]] = {}
    for place, (message, _) in enumerate(replayed):
        by_length.setdefault(len(message), []).append(place)
    batches = []
    for length, places in {tokens.shape[1]: [], **by_length}.items():
        own = length == tokens.shape[1]
        some_tokens = [replayed[i][0].to(tokens.device) for i in places]
        some_labels = [replayed[i][1].to(labels.device) for i in places]
        batches.append(
            _Batch(
                torch.cat([tokens, *(t.unsqueeze(0) for t in some_tokens)]) if own else torch.stack(some_tokens),
                torch.cat([labels, *(y.reshape(1) for y in some_labels)]) if own else torch.stack(some_labels),
                [*(range(len(labels)) if own else ()), *(len(labels) + i for i in places)],
            )
        )
    return batches


@torch.no_grad()
def _scores(model: RaccoonLogClassifier, batches: Sequence[_Batch]) -> tuple[list[bool], list[float]]:
    """For each message whether it is classified right, and 1 - p(its label), along the path without noise."""
    total = sum(len(batch.labels) for batch in batches)
    correct, surprise = [False] * total, [0.0] * total
    for batch in batches:
        log_p = F.log_softmax(model.predict_logits(batch.tokens).float(), dim=-1)
        right = (log_p.argmax(dim=-1) == batch.labels).tolist()
        missing = (-torch.expm1(log_p.gather(1, batch.labels.unsqueeze(1)).squeeze(1))).tolist()
        for place, is_right, value in zip(batch.places, right, missing, strict=True):
            correct[place], surprise[place] = is_right, value
    return correct, surprise
