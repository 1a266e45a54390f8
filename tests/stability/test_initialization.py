"""Initialisers: fans, exact moments, variance through 100 layers, LSUV's restraint, residual networks that train without normalisation."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latent_drift.errors import UsageError
from latent_drift.stability import (
    Fans,
    ResidualBranch,
    StableInitializer,
    describe,
    fans_of,
    fixup_init,
    gain_of,
    initialize,
    lsuv_init,
    orthogonal_init,
    rezero_init,
    spectral_norm_init,
)
from tests.stability.variance_through_depth import measure, predicted_spread


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(30, 50), (64, 30)),
        (nn.Conv2d(8, 16, 3, padding=1), (8, 8, 16, 16)),
        (nn.Conv2d(8, 16, 3, padding=1, groups=4), (8, 8, 16, 16)),
        (nn.ConvTranspose2d(12, 4, 4, stride=2), (8, 12, 16, 16)),
        (nn.ConvTranspose1d(12, 6, 3, groups=2), (8, 12, 64)),
    ],
    ids=["linear", "conv", "grouped", "transposed-strided", "transposed-grouped"],
)
def test_he_with_our_fans_keeps_unit_variance_where_shapes_alone_do_not(layer: nn.Module, shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    x = torch.randn(shape)
    ratios = []
    for _ in range(20):
        initialize(layer, "he", "linear", overwrite=True)
        with torch.no_grad():
            y = layer(x)
        inside = y[(..., *[slice(4, -4)] * (x.dim() - 2))] if x.dim() > 2 else y
        ratios.append(inside.var().item())
    assert sum(ratios) / 20 == pytest.approx(1.0, rel=0.1)
    torchs, _ = nn.init._calculate_fan_in_and_fan_out(layer.weight)
    if isinstance(layer, nn.ConvTranspose2d):
        assert abs(torchs / fans_of(layer).fan_in - 1) > 0.3  # negative control: nn.init reads the wrong axis


def test_fans_of_strided_depthwise_and_embedding_layers() -> None:
    assert fans_of(nn.Conv1d(6, 6, 5, groups=6)) == Fans(5.0, 5.0)
    assert fans_of(nn.Conv2d(4, 8, 3, stride=2)).fan_out == 8 * 9 / 4
    assert fans_of(nn.EmbeddingBag(10, 3)) == Fans(1.0, 3.0)
    with pytest.raises(UsageError, match="no weight"):
        fans_of(nn.ReLU())
    with pytest.raises(UsageError, match="at least 2 dimensions"):
        StableInitializer.xavier_uniform_stable(torch.empty(3))
    with pytest.raises(UsageError, match="fan mode"):
        StableInitializer.xavier_uniform_stable(torch.empty(3, 3), fan_mode="fan_side")


def test_standard_deviations_are_those_of_theory_where_the_audits_cap_kills_the_signal() -> None:
    torch.manual_seed(0)
    x = torch.randn(256, 16)
    capped, ours = x, x
    for _ in range(10):
        w = torch.randn(16, 16) * min(math.sqrt(2 / 16), 0.1)  # the audited form
        capped = torch.relu(capped @ w.t())
        ours = torch.relu(ours @ StableInitializer.kaiming_normal_stable(torch.empty(16, 16)).t())
    assert capped.std() < 0.01 * x.std()  # negative control
    assert ours.std() > 0.1 * x.std()
    for fan_mode, fan in (("fan_in", 300), ("fan_out", 600), ("fan_avg", 450)):
        w = StableInitializer.xavier_uniform_stable(torch.empty(600, 300), 2.0, fan_mode)
        assert w.std().item() == pytest.approx(2 / math.sqrt(fan), rel=0.02)
        assert w.abs().max().item() <= 2 * math.sqrt(3 / fan)
    one, hundred = (StableInitializer.residual_init(torch.empty(400, 300), d, 0).std().item() for d in (1, 100))
    assert one / hundred == pytest.approx(10, rel=0.02)  # the audited form ignores depth
    with pytest.raises(UsageError, match="layer_idx"):
        StableInitializer.residual_init(torch.empty(2, 2), 3, 3)
    assert StableInitializer.kaiming_normal_stable(torch.empty(0, 4)).shape == (0, 4)
    with pytest.raises(UsageError, match="unknown nonlinearity"):
        gain_of("wiggle")


@pytest.mark.parametrize("name", ["gelu", "silu", "relu"])
def test_gains_keep_the_second_moment(name: str) -> None:
    z = torch.linspace(-9, 9, 200_001, dtype=torch.float64)
    density = torch.exp(-z * z / 2) / math.sqrt(2 * math.pi)
    moment = torch.trapezoid(getattr(F, name)(z) ** 2 * density, z).item()
    assert gain_of(name) == pytest.approx(moment**-0.5, rel=1e-4)


@pytest.mark.parametrize("shape", [(8, 8), (4, 9), (9, 4), (4, 3, 3, 3)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_orthogonal_in_every_dtype_and_shape(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    w = orthogonal_init(torch.empty(shape, dtype=dtype), 2.0).double().flatten(1)
    gram = w @ w.t() if w.shape[0] <= w.shape[1] else w.t() @ w
    assert torch.allclose(gram, 4 * torch.eye(len(gram), dtype=torch.float64), atol=40 * torch.finfo(dtype).eps)


def test_spectral_init() -> None:
    w = spectral_norm_init(torch.randn(5, 7), 3.0)
    assert torch.linalg.matrix_norm(w, 2).item() == pytest.approx(3.0, rel=1e-5)
    assert (spectral_norm_init(torch.zeros(2, 2)) == 0).all()


def test_orthogonal_and_lsuv_keep_the_variance_through_100_layers_and_he_stays_in_its_spread() -> None:
    for scheme, activation in (("orthogonal", "linear"), ("lsuv", "relu"), ("lsuv", "tanh")):
        row = measure(scheme, activation, width=64, depth=100, seeds=16)
        assert row["activation_mean"] == pytest.approx(1.0, rel=0.1), row
    he = measure("he", "relu", width=64, depth=100, seeds=16)
    spread = predicted_spread("he", "relu", 64, 20)
    shallow = measure("he", "relu", width=64, depth=20, seeds=16)
    assert abs(shallow["activation_mean"] - 1) < 3 * spread / 4  # standard error of 16 seeds
    assert he["activation_max"] > 3 * he["activation_median"]  # single seeds scatter: that is theory too
    capped = measure("capped", "relu", width=64, depth=100, seeds=4)
    assert capped["activation_mean"] < 1e-6  # negative control


def test_initialize_keeps_ties_earlier_work_zeros_and_padding() -> None:
    torch.manual_seed(0)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(9, 4, padding_idx=0)
            self.out = nn.Linear(4, 9, bias=False)
            self.out.weight = self.embedding.weight
            self.gate = nn.Linear(4, 4)
            self.norm = nn.LayerNorm(4)
            self.hidden = nn.Linear(4, 4)
            nn.init.zeros_(self.gate.weight)

    net = Net()
    done = initialize(net, "xavier", "linear")
    assert done == {
        "embedding.weight": "normal",
        "out.weight": "kept: tied to embedding.weight",
        "gate.weight": "kept: zero by design",
        "hidden.weight": "xavier",
    }
    assert (net.embedding.weight[0] == 0).all()
    assert (net.norm.weight == 1).all()
    before = net.hidden.weight.clone()
    assert initialize(net, "he")["hidden.weight"] == "kept: initialised before"
    assert torch.equal(net.hidden.weight, before)
    initialize(net, "he", overwrite=True)
    assert not torch.equal(net.hidden.weight, before)
    with pytest.raises(UsageError, match="scheme must be"):
        initialize(net, "best")
    rows = {row["name"]: row for row in describe(net)}
    assert rows["out.weight"]["tied_to"] == "embedding.weight"
    assert rows["hidden.weight"]["std_over_he"] == pytest.approx(1, rel=0.6)
    assert StableInitializer.describe(net) == describe(net)


def test_lsuv_gives_unit_variance_and_leaves_everything_else_as_it_was() -> None:
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.ConvTranspose2d(8, 4, 3),
        nn.Dropout(0.5),
        nn.Flatten(),
        nn.Linear(4 * 64, 16),
        nn.Tanh(),
        nn.Linear(16, 2),
    )
    model[4].eval()
    batch = torch.randn(32, 3, 8, 8) * 7 + 2
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    state = torch.get_rng_state()
    variances = lsuv_init(model, batch)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, buffers[k]) for k, v in model.named_buffers())
    assert (model.training, model[4].training, model[1].training) == (True, False, True)
    assert list(variances) == ["0", "3", "6", "8"]
    assert all(v == pytest.approx(1, rel=1e-3) for v in variances.values())
    assert all(v == pytest.approx(2.5, rel=1e-3) for v in lsuv_init(model, batch, 2.5).values())
    assert not any(m._forward_hooks for m in model.modules())


def test_lsuv_scales_shared_weights_once_keeps_zeros_and_refuses_bad_data() -> None:
    shared = nn.Linear(8, 8)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(8, 8))
    nn.init.zeros_(model[3].weight)
    variances = lsuv_init(model, torch.randn(64, 8))
    assert variances["0"] == pytest.approx(1, rel=1e-3)
    assert variances["3"] == 0
    with pytest.raises(UsageError, match="output of 0 is not finite"):
        lsuv_init(nn.Sequential(nn.Linear(2, 2)), torch.full((3, 2), math.nan))
    with pytest.raises(UsageError, match="no linear or convolutional"):
        lsuv_init(nn.ReLU(), torch.randn(2, 2))
    with pytest.raises(UsageError, match="target_var"):
        lsuv_init(model, torch.randn(2, 8), 0.0)
    half = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64)).half()
    assert all(v == pytest.approx(1, rel=0.02) for v in lsuv_init(half, torch.randn(128, 64).half()).values())


def _residual_mlp(scheme: str, depth: int = 20, width: int = 32) -> nn.Module:
    blocks = [ResidualBranch(nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)), scheme, depth) for _ in range(depth)]  # type: ignore[arg-type]
    return nn.Sequential(nn.Linear(16, width), *blocks, nn.Linear(width, 4))


def _residual_convnet(scheme: str, depth: int = 5) -> nn.Module:
    blocks = [
        ResidualBranch(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1)), scheme, depth) for _ in range(depth)
    ]  # type: ignore[arg-type]
    return nn.Sequential(nn.Unflatten(1, (1, 4, 4)), nn.Conv2d(1, 8, 3, padding=1), *blocks, nn.Flatten(), nn.Linear(128, 4))


def _train(model: nn.Module, steps: int = 120, lr: float = 3e-3) -> float:
    torch.manual_seed(1)
    x = torch.randn(256, 16)
    y = (x @ torch.randn(16, 4)).argmax(1)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    loss = torch.tensor(math.nan)
    for _ in range(steps):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        if not loss.isfinite():
            break
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("build", [_residual_mlp, _residual_convnet])
@pytest.mark.parametrize("scheme", ["rezero", "skipinit", "fixup", "scaled", "lsuv"])
def test_residual_networks_train_without_normalisation(build: object, scheme: str) -> None:
    torch.manual_seed(0)
    model = build("scaled" if scheme == "lsuv" else scheme)  # type: ignore[operator]
    initialize(model)
    if scheme == "fixup":
        fixup_init(model)
    elif scheme in ("rezero", "skipinit"):
        rezero_init(model)
    elif scheme == "lsuv":
        lsuv_init(model, torch.randn(64, 16))
    assert _train(model) < 0.4


def test_the_same_networks_with_plain_residuals_and_he_do_not() -> None:
    torch.manual_seed(0)
    model = _residual_mlp("scaled", depth=60)
    for module in model.modules():
        if isinstance(module, ResidualBranch):
            module.alpha.fill_(1.0)
    initialize(model)
    x = torch.randn(64, 16)
    assert model(x).detach().std() > 1e6  # negative control: the variance doubles (triples) with every branch
    assert not _train(model) < 0.4


def test_residual_branch_refuses_what_it_does_not_know() -> None:
    with pytest.raises(UsageError, match="scheme must be"):
        ResidualBranch(nn.Identity(), "magic")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="no ResidualBranch"):
        fixup_init(nn.Linear(2, 2))
    with pytest.raises(UsageError, match="no ResidualBranch"):
        rezero_init(nn.Linear(2, 2))
    x: Tensor = torch.randn(2, 4)
    assert torch.equal(ResidualBranch(nn.Linear(4, 4), "scaled", 4).alpha, torch.tensor(0.5))
    assert ResidualBranch(nn.Linear(4, 4), "fixup")(x).shape == x.shape
