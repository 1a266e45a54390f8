"""The schema: frozen, strict, finite, nothing unknown."""

from __future__ import annotations

import copy
import math
import pickle
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from latent_drift.config import StabilityConfig, available, dtype_name, load
from latent_drift.config.v1 import DTYPES, canonical_json
from latent_drift.errors import ConfigError, UsageError
from tests.config.values import CLIPS, LEAVES, NUMBERS, Leaf, valid


def at(config: StabilityConfig, path: str) -> Any:
    for name in path.split("."):
        config = getattr(config, name)
    return config


def test_every_field_of_the_page_is_there() -> None:
    sections = "precision exp log sqrt softmax division losses gradient recovery anomaly amp initialization profiles".split()
    identity = "schema_version version title released sha256".split()
    assert {*sections, *identity} <= set(StabilityConfig.model_fields)
    config = load("1.0.0")
    assert set(config.profiles) == {"observe", "guard", "train", "strict"}
    assert tuple(config.precision.keys()) == ("float16", "bfloat16", "float32", "float64")


@pytest.mark.parametrize("leaf", LEAVES, ids=lambda leaf: leaf.path)
def test_no_value_can_be_set_on_a_config(leaf: Leaf) -> None:
    parent, _, name = leaf.path.rpartition(".")
    config = load("1.0.0")
    with pytest.raises(ValidationError, match="frozen"):
        setattr(at(config, parent) if parent else config, name, at(config, leaf.path))


def test_mappings_of_a_config_cannot_be_changed() -> None:
    config = load("1.0.0", gradient={"warn_norm": 7.0})
    for mapping in (config.overrides, config.profiles, config.profiles["train"]):
        with pytest.raises(TypeError):
            mapping["act"] = False  # type: ignore[index]


@settings(deadline=None)
@given(st.sampled_from(LEAVES).flatmap(lambda leaf: st.tuples(st.just(leaf), valid(leaf))))
def test_every_valid_value_arrives_unchanged(case: tuple[Leaf, Any]) -> None:
    leaf, value = case
    others = {"amp.min_scale": value} if leaf.path == "amp.init_scale" else {"amp.init_scale": value} if leaf.path == "amp.min_scale" else {}
    arrived = at(load("1.0.0", **{leaf.path: value, **others}), leaf.path)
    assert arrived == (tuple(value) if isinstance(value, list) else value)
    assert type(arrived) is (tuple if isinstance(value, list) else float if leaf.info.annotation is float else type(value))


NOT_NUMBERS = st.one_of(
    st.booleans(),
    st.text(max_size=4),
    st.from_regex(r"-?[0-9]{1,3}(\.[0-9])?", fullmatch=True),
    st.none(),
    st.lists(st.integers(), max_size=2),
    st.binary(max_size=3),
)


@settings(deadline=None)
@given(st.sampled_from(NUMBERS), NOT_NUMBERS)
def test_nothing_is_coerced_to_a_number(leaf: Leaf, value: Any) -> None:
    with pytest.raises(ConfigError, match=leaf.path.replace(".", r"\.")):
        load("1.0.0", **{leaf.path: value})


@settings(deadline=None)
@given(st.sampled_from([leaf for leaf in NUMBERS if leaf.info.annotation is int]), st.floats(1.0, 100.0))
def test_a_float_is_no_whole_number_even_if_it_is_one(leaf: Leaf, value: float) -> None:
    for number in (value, float(round(value))):
        with pytest.raises(ConfigError, match=leaf.path.replace(".", r"\.")):
            load("1.0.0", **{leaf.path: number})


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("leaf", NUMBERS, ids=lambda leaf: leaf.path)
def test_nonfinite_numbers_are_refused_by_path(leaf: Leaf, value: float) -> None:
    with pytest.raises(ConfigError, match=leaf.path.replace(".", r"\.")) as caught:
        load("1.0.0", **{leaf.path: value})
    assert repr(value) in str(caught.value)
    assert isinstance(caught.value.__cause__, ValidationError)


@pytest.mark.parametrize("value", [1, 0, "true", None])
@pytest.mark.parametrize("path", [leaf.path for leaf in LEAVES if leaf.info.annotation is bool])
def test_nothing_is_coerced_to_a_truth_value(path: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=path.replace(".", r"\.")):
        load("1.0.0", **{path: value})


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("gradient.warn_norm", 0.0),
        ("gradient.warn_norm", -1.0),
        ("gradient.spike_ratio", 1.0),
        ("precision.float16.mask_value", 1.0),
        ("amp.backoff_factor", 1.0),
        ("recovery.retries", 0),
        ("gradient.nonfinite", "ignore"),
        ("anomaly.checks", ["loss", "loses"]),
        ("anomaly.allow", ["ok", ""]),
        ("anomaly.allow", "train.py:3"),  # a lone string is no list of letters
        ("exp.bound", "dtypes"),
        ("exp.bound", 0.0),
    ],
)
def test_values_out_of_their_range_are_refused_by_path(path: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=path.replace(".", r"\.")):
        load("1.0.0", **{path: value})


@settings(deadline=None)
@given(CLIPS)
def test_every_kind_of_clip_loads_and_refuses_the_parameters_of_the_others(clip: dict[str, Any]) -> None:
    config = load("1.0.0", gradient={"clip": clip})
    assert config.gradient.clip.model_dump().items() >= clip.items()
    parameters = {"max_norm", "max_value", "percentile", "threshold", "clipping"}
    for foreign in parameters - set(type(config.gradient.clip).model_fields):
        with pytest.raises(ConfigError, match=rf"gradient\.clip\.{foreign}: unknown key"):
            load("1.0.0", gradient={"clip": {**clip, foreign: 1.0}})


@pytest.mark.parametrize("kind", ["adaptive_percentile", "zscore"])
def test_a_warmup_longer_than_the_history_is_refused(kind: str) -> None:
    clip = {"kind": kind, "history": 10, "warmup": 11, **({"percentile": 90.0} if kind == "adaptive_percentile" else {"threshold": 3.0})}
    with pytest.raises(ConfigError, match=r"gradient\.clip: warmup \(11\) cannot exceed history \(10\)"):
        load("1.0.0", gradient={"clip": clip})


def test_a_loss_scale_floor_above_its_start_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"amp: min_scale \(2048\.0\) cannot exceed init_scale \(1024\.0\)"):
        load("1.0.0", amp={"min_scale": 2048.0})


def test_precision_is_found_by_any_name_of_a_dtype() -> None:
    import torch

    precision = load("1.0.0").precision
    for name in DTYPES:
        assert precision[name] is precision[f"torch.{name}"] is precision[getattr(torch, name)] is getattr(precision, name)
        assert name in precision
        assert dtype_name(getattr(torch, name)) == name
    assert "int64" not in precision


@pytest.mark.parametrize("dtype", ["int64", "torch.complex64", "float8_e4m3fn", "half", ""])
def test_a_dtype_without_bounds_is_refused_by_name(dtype: str) -> None:
    with pytest.raises(UsageError, match=r"float16, bfloat16, float32, float64; got"):
        load("1.0.0").precision[dtype]


def test_the_exp_bound_is_the_tighter_of_dtype_and_config() -> None:
    config = load("1.0.0", exp={"bound": 20.0})
    assert config.exp_bound("float16") == config.precision["float16"].exp_max < 20.0
    assert config.exp_bound("float32") == 20.0
    assert load("1.0.0", profile="train").exp_bound("float32") == config.precision["float32"].exp_max


def test_the_identity_names_version_draft_hash_and_profile() -> None:
    config = load("1.0.0", profile="guard")
    assert config.identity == f"1.0.0{'+draft' if config.draft else ''} sha256:{config.sha256[:8]} profile=guard"
    changed = load(config, gradient={"warn_norm": 50.0})
    assert changed.identity == f"{config.identity} overrides=1 values:{changed.digest[:8]}"
    assert str(changed) == changed.identity


def test_the_digest_is_of_the_values_alone() -> None:
    guard = load("1.0.0", profile="guard")
    assert guard.digest != load("1.0.0", profile="train").digest
    by_hand = load("1.0.0", profile="observe", act=True)
    assert by_hand.values() == guard.values()
    assert by_hand.digest == guard.digest
    assert by_hand != guard  # the same numerics, told apart by how they were named


def test_canonical_json_is_independent_of_order_and_refuses_nonfinite_numbers() -> None:
    assert canonical_json({"b": 1.0, "a": [1, True, None]}) == canonical_json({"a": [1, True, None], "b": 1.0}) == '{"a":[1,true,null],"b":1.0}'
    with pytest.raises(ValueError, match="not JSON compliant"):
        canonical_json({"a": math.nan})


@pytest.mark.parametrize("profile", ["observe", "guard", "train", "strict"])
@pytest.mark.parametrize("version", [release.version for release in available()])
def test_configs_are_values(version: str, profile: str) -> None:
    config = load(version, profile=profile)
    for twin in (
        load(version, profile=profile),
        pickle.loads(pickle.dumps(config)),
        copy.deepcopy(config),
        StabilityConfig.model_validate(config.model_dump()),
    ):
        assert twin == config
        assert hash(twin) == hash(config)
        assert twin.digest == config.digest
    assert config != load(version, profile=profile, gradient={"warn_norm": 99.0})
