"""Planted faults are named, with layer and evidence, and healthy models come out clean; architectures it was not tuned on among them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_drift.errors import UsageError
from latent_drift.stability import diagnose
from latent_drift.stability.calling import accuracy_of, logits_of
from latent_drift.stability.diagnosis.fault import KINDS
from tests.stability import unseen_models

Case = tuple[nn.Module, Any, Any, dict[str, Any]]


def _task(n: int = 200, features: int = 16, classes: int = 4) -> tuple[Tensor, Tensor]:
    """Inputs and labels with a signal: the class is the largest of a few random projections."""
    x = torch.randn(n, features)
    return x, (x @ torch.randn(features, classes)).argmax(1)


def _mlp(depth: int = 3, width: int = 32, act: type[nn.Module] = nn.ReLU, features: int = 16, classes: int = 4) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(features, width), act()]
    for _ in range(depth - 2):
        layers += [nn.Linear(width, width), act()]
    return nn.Sequential(*layers, nn.Linear(width, classes))


def _exploding() -> Case:
    model = _mlp(20)
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.normal_(m.weight, std=2 * math.sqrt(2 / m.in_features))
    return model, _task(), F.cross_entropy, {}


def _vanishing() -> Case:
    return _mlp(16, act=nn.Sigmoid), _task(), F.cross_entropy, {}


def _dead_relu() -> Case:
    model = _mlp(4)
    with torch.no_grad():
        model[2].bias.fill_(-10.0)
    return model, _task(), F.cross_entropy, {}


def _saturated() -> Case:
    model = _mlp(3, act=nn.Sigmoid)
    with torch.no_grad():
        model[2].weight.mul_(500)
    return model, _task(), F.cross_entropy, {}


def _symmetric() -> Case:
    model = _mlp(3)
    for m in model:
        if isinstance(m, nn.Linear):
            nn.init.constant_(m.weight, 0.0)
            nn.init.constant_(m.bias, 0.0)
    return model, _task(), F.cross_entropy, {}


def _learning_rate(lr: float) -> Callable[[], Case]:
    def make() -> Case:
        model = _mlp()
        return model, _task(), F.cross_entropy, {"optimizer": torch.optim.SGD(model.parameters(), lr=lr)}

    return make


def _unscaled() -> Case:
    x, y = _task()
    return _mlp(), (x * 80 + 120, y), F.cross_entropy, {}


def _shuffled() -> Case:
    x, y = _task(400)
    return _mlp(), (x, y[torch.randperm(len(y))]), F.cross_entropy, {}


class _Detached(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(16, 32)
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.encoder(x)).detach())


def _frozen() -> Case:
    model = _mlp(4)
    model[2].requires_grad_(False)
    return model, _task(), F.cross_entropy, {}


def _nan_row() -> Case:
    x, y = _task()
    x[17, 3] = math.nan
    return _mlp(), (x, y), F.cross_entropy, {}


def _underflow() -> Case:
    model = _mlp().half()
    x, y = _task()
    return model, (x.half(), y), lambda out, target: F.cross_entropy(out.float(), target) * 1e-6, {}


# kind, layer (a part of its name), builder
FAULTS: dict[str, tuple[str, str, Callable[[], Case]]] = {
    "exploding": ("exploding", "weight", _exploding),
    "vanishing": ("vanishing", "0.weight", _vanishing),
    "dead ReLU": ("dead_relu", "3", _dead_relu),
    "saturated sigmoid": ("saturated_sigmoid", "3", _saturated),
    "log(C) plateau by symmetric init": ("plateau", "0", _symmetric),
    "learning rate too high": ("learning_rate", "optimizer", _learning_rate(300.0)),
    "learning rate too low": ("learning_rate", "optimizer", _learning_rate(1e-6)),
    "unscaled inputs": ("unscaled_inputs", "inputs", _unscaled),
    "shuffled labels": ("shuffled_labels", "labels", _shuffled),
    "detached graph": ("detached_graph", "encoder", lambda: (_Detached(), _task(), F.cross_entropy, {})),
    "frozen layer": ("frozen_layer", "2", _frozen),
    "NaN row in the data": ("nonfinite_data", "inputs", _nan_row),
    "float16 underflow": ("underflow", "weight", _underflow),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", FAULTS)
def test_a_planted_fault_is_named_with_layer_and_evidence(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    kind, layer, build = FAULTS[name]
    model, batch, loss_fn, options = build()
    found = diagnose(model, batch, loss_fn, **options)
    matching = [f for f in found if f.kind == kind]
    assert matching, f"found {found.kinds} instead: {found}"
    assert layer in matching[0].layer, found
    assert any(c.isdigit() for c in matching[0].evidence)
    assert matching[0].advice


class _VAE(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(16, 2 * 4), nn.Linear(4, 16)

    def forward(self, x: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        mean, logvar = self.encoder(x).chunk(2, -1)
        z = mean + torch.exp(0.5 * logvar) * torch.randn_like(mean)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).sum(-1).mean()
        return F.mse_loss(self.decoder(z), x) + 0.01 * kl, {"kl": kl.detach()}


class _Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(16, 32)
        self.blocks = nn.ModuleList(nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32)) for _ in range(12))
        for block in self.blocks:
            nn.init.zeros_(block[3].weight)  # a zero start of each branch is healthy
        self.head = nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class _Tokens(nn.Module):
    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.embedding, self.body, self.head = nn.Embedding(12, 16), body, nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.embedding(tokens)
        y = self.body(x)
        return self.head((y[0] if isinstance(y, tuple) else y).mean(1))


def _tokens(n: int = 160) -> tuple[Tensor, Tensor]:
    tokens = torch.randint(0, 12, (n, 9))
    return tokens, (tokens < 4).sum(1).clamp(2, 4) - 2


def _images(n: int = 120) -> tuple[Tensor, Tensor]:
    y = torch.randint(0, 3, (n,))
    x = torch.randn(n, 1, 8, 8) * 0.3
    x[torch.arange(n), 0, y * 2, :] += 1.0
    return x, y


def _cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


def _regression() -> tuple[Tensor, Tensor]:
    x, _ = _task()
    return x, x[:, :1] * 2 + x[:, 1:2].square()


def _trained() -> Case:
    model, batch = _mlp(), _task()
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(150):
        optimizer.zero_grad()
        F.cross_entropy(model(batch[0]), batch[1]).backward()
        optimizer.step()
    optimizer.zero_grad()
    return model, batch, F.cross_entropy, {}


HEALTHY: dict[str, Callable[[], Case]] = {
    "mlp": lambda: (_mlp(), _task(), F.cross_entropy, {}),
    "linear": lambda: (nn.Linear(16, 4), _task(), F.cross_entropy, {}),
    "tanh": lambda: (_mlp(4, act=nn.Tanh), _task(), F.cross_entropy, {}),
    "residual with zero branches": lambda: (_Residual(), _task(), F.cross_entropy, {}),
    "convnet with batch norm": lambda: (_cnn(), _images(), F.cross_entropy, {}),
    "gru": lambda: (_Tokens(nn.GRU(16, 16, batch_first=True)), _tokens(), F.cross_entropy, {}),
    "transformer": lambda: (_Tokens(nn.TransformerEncoderLayer(16, 4, 32, batch_first=True)), _tokens(), F.cross_entropy, {}),
    "regression": lambda: (_mlp(classes=1), _regression(), F.mse_loss, {}),
    "model with its own loss": lambda: (_VAE(), _task()[0], None, {}),
    "dropout": lambda: (nn.Sequential(nn.Linear(16, 64), nn.GELU(), nn.Dropout(0.5), nn.Linear(64, 4)), _task(), F.cross_entropy, {}),
    "bfloat16": lambda: (_mlp().bfloat16(), (lambda x, y: (x.bfloat16(), y))(*_task()), F.cross_entropy, {}),
    "trained": _trained,
    "small batch of random labels": lambda: (_mlp(), (torch.randn(32, 16), torch.randint(4, (32,))), F.cross_entropy, {}),
}


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_model_comes_out_clean(name: str, seed: int) -> None:
    torch.manual_seed(seed)
    model, batch, loss_fn, options = HEALTHY[name]()
    assert diagnose(model, batch, loss_fn, **options).healthy, str(diagnose(model, batch, loss_fn, **options))


@pytest.mark.parametrize("name", unseen_models.PLANTED)
def test_faults_in_architectures_it_was_not_tuned_on_are_named(name: str) -> None:
    torch.manual_seed(0)
    kind, layer, build = unseen_models.PLANTED[name]
    model, batch, loss_fn, options = build()
    found = diagnose(model, batch, loss_fn, **options)
    assert any(f.kind == kind and layer in f.layer for f in found), str(found)
    assert set(found.kinds) <= {kind, "plateau"}, str(found)  # nothing else is blamed, but for the consequence


@pytest.mark.parametrize("name", unseen_models.HEALTHY)
def test_healthy_architectures_it_was_not_tuned_on_come_out_clean(name: str) -> None:
    torch.manual_seed(0)
    model, batch, loss_fn, options = unseen_models.HEALTHY[name]()
    found = diagnose(model, batch, loss_fn, **options)
    assert found.healthy, str(found)
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_class_scores_are_found_on_either_axis_and_under_a_name() -> None:
    labels = torch.randint(3, (2, 5))
    first, last = torch.randn(2, 3, 5), torch.randn(2, 5, 3)
    assert logits_of(first, labels) is first
    for output in (last, {"logits": last}, (torch.tensor(1.0), {"logits": last})):
        found = logits_of(output, labels)
        assert found is not None
        assert torch.equal(found, last.movedim(-1, 1))
    assert logits_of(torch.randn(2, 4, 3), labels) is None
    assert logits_of(last, torch.randn(2, 5)) is None
    ignored = torch.tensor([0, -100, 1])
    assert accuracy_of(torch.eye(3), ignored) == 0.5


@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_a_good_learning_rate_is_not_blamed(lr: float) -> None:
    torch.manual_seed(0)
    model = _mlp()
    assert diagnose(model, _task(), F.cross_entropy, torch.optim.AdamW(model.parameters(), lr=lr)).healthy


def test_nothing_of_the_model_is_changed() -> None:
    torch.manual_seed(0)
    model = _cnn()
    model[2].eval()
    batch = _images()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    model[0].weight.grad = torch.ones_like(model[0].weight)
    state = torch.get_rng_state()
    diagnose(model, batch, F.cross_entropy)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert (model[0].weight.grad == 1).all()
    assert model[0].bias.grad is None
    assert not model[2].training
    assert model[0].training
    assert not any(m._forward_hooks for m in model.modules())


def test_a_nonfinite_layer_and_parameters_are_named_once() -> None:
    torch.manual_seed(0)
    model = _mlp()
    with torch.no_grad():
        model[2].weight[0, 0] = math.nan
    found = diagnose(model, _task(), F.cross_entropy)
    assert found.kinds == ["nonfinite_parameters"]
    assert found[0].layer == "2.weight"

    class Log(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.log(x)

    found = diagnose(nn.Sequential(nn.Linear(16, 8), Log(), nn.Linear(8, 4)), _task(), F.cross_entropy)
    assert [(f.kind, f.layer) for f in found] == [("nonfinite_activation", "1")]


def test_a_loss_that_refuses_nan_is_explained_and_other_errors_are_the_models_own() -> None:
    torch.manual_seed(0)

    class Generator(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.logvar, self.decoder = nn.Linear(16, 4), nn.Linear(4, 16)
            nn.init.constant_(self.logvar.bias, 200.0)

        def forward(self, x: Tensor) -> Tensor:
            z = torch.exp(0.5 * self.logvar(x)) * torch.randn(len(x), 4)
            return F.binary_cross_entropy(torch.sigmoid(self.decoder(z)), x)

    with pytest.raises(RuntimeError, match="between 0 and 1"):
        Generator()(torch.rand(8, 16))  # negative control: torch speaks of the loss
    (fault,) = diagnose(Generator(), torch.rand(8, 16))
    assert (fault.kind, fault.layer) == ("nonfinite_activation", "decoder")
    assert "between 0 and 1" in fault.evidence
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        diagnose(Generator(), torch.rand(8, 15))


def test_a_saturated_softmax_that_is_wrong_is_named() -> None:
    torch.manual_seed(0)
    model = _mlp()
    with torch.no_grad():
        model[4].weight.mul_(1000)
    assert "saturated_softmax" in diagnose(model, _task(), F.cross_entropy).kinds


def test_unusable_batches_and_missing_losses_are_refused() -> None:
    with pytest.raises(UsageError, match="no rows"):
        diagnose(_mlp(), (torch.empty(0, 16), torch.empty(0, dtype=torch.long)), F.cross_entropy)
    with pytest.raises(UsageError, match="no loss_fn"):
        diagnose(_mlp(), torch.randn(4, 16))


def test_every_kind_has_a_meaning_and_text_for_people() -> None:
    torch.manual_seed(0)
    found = diagnose(*_nan_row()[:3])
    assert KINDS["nonfinite_data"] in str(found)
    assert str(diagnose(_mlp(), _task(), F.cross_entropy)) == "nothing found"
