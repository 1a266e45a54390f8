"""Messages: the path as the document has it, and the closest known key."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latent_drift.config import load
from latent_drift.config.problems import closest, known_paths
from latent_drift.config.v1 import StabilityConfig
from latent_drift.errors import ConfigError

VALUE_PATHS = [path for path in known_paths() if path.partition(".")[0] not in StabilityConfig.IDENTITY]


def test_known_paths_have_containers_leaves_and_every_alternative_once() -> None:
    paths = known_paths()
    assert {
        "gradient",
        "gradient.clip",
        "gradient.clip.max_norm",
        "gradient.clip.percentile",
        "gradient.clip.clipping",
        "precision.float16.exp_max",
    } <= set(paths)
    assert len(paths) == len(set(paths))


@settings(deadline=None)
@given(st.sampled_from([path for path in VALUE_PATHS if len(path.rpartition(".")[2]) > 4]), st.data())
def test_one_wrong_letter_is_recognised(path: str, data: st.DataObject) -> None:
    parent, _, name = path.rpartition(".")
    at = data.draw(st.integers(0, len(name) - 1))
    edited = data.draw(st.sampled_from([name[:at] + name[at + 1 :], f"{name[:at]}q{name[at + 1 :]}", f"{name[:at]}q{name[at:]}"]))
    wrong = f"{parent}.{edited}" if parent else edited
    siblings = [known for known in known_paths() if known.rpartition(".")[0] == parent]
    if wrong in siblings:
        return
    near = closest(wrong, known_paths())
    assert near is not None
    if near != path:  # another sibling is as close (log_floor without its first letter is none, min for max is)
        from difflib import SequenceMatcher

        assert near in siblings
        assert SequenceMatcher(None, edited, near.rpartition(".")[2]).ratio() >= SequenceMatcher(None, edited, name).ratio()


@settings(deadline=None)
@given(st.sampled_from(["", "gradient", "gradient.clip", "precision.bfloat16", "amp", "anomaly"]), st.from_regex(r"[a-z_]{1,12}", fullmatch=True))
def test_an_unknown_key_is_refused_by_its_path_wherever_it_is(parent: str, name: str) -> None:
    path = f"{parent}.{name}" if parent else name
    if path in known_paths() or (parent == "gradient.clip" and f"gradient.clip.{name}" in known_paths()):
        return
    with pytest.raises(ConfigError) as caught:
        load("1.0.0", **{path: 1.0})
    assert f"{path}: unknown key" in str(caught.value)


def test_a_key_that_resembles_nothing_gets_what_is_known_there() -> None:
    assert closest("xxxxxxxx", known_paths()) is None
    with pytest.raises(ConfigError, match=r"exp\.xxxxxxxx: unknown key; known here: exp\.bound, exp\.gradient_outside; got 1"):
        load("1.0.0", exp={"xxxxxxxx": 1})


def test_a_key_in_the_wrong_place_finds_its_own() -> None:
    assert closest("max_consecutive_skips", known_paths()) == "gradient.max_consecutive_skips"
    assert closest("gradient.max_norm", known_paths()) == "gradient.clip.max_norm"
    assert closest("gradient_clip", known_paths()) in {"gradient.clip", "gradient"}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"gradient": {"clip": {"kind": "nrm", "max_norm": 1.0}}},
            r"gradient\.clip: unknown kind 'nrm'; expected one of none, norm, value, adaptive_percentile, zscore, agc",
        ),
        ({"gradient": {"clip": {"kind": "norm", "max_norm": "1"}}}, r"gradient\.clip\.max_norm: should be a valid number; got '1'"),
        ({"gradient": {"clip": {"kind": "value"}}}, r"gradient\.clip\.max_value: missing"),
        ({"gradient": {"clip": "norm"}}, r"gradient\.clip: should be a table of values; got 'norm'"),
        ({"gradient": 3}, r"gradient: should be a table of values; got 3"),
        ({"exp": {"bound": -1.0}}, r"exp\.bound: should be 'dtype' or should be greater than 0; got -1\.0"),
        ({"anomaly": {"checks": ["loss", "los"]}}, r"anomaly\.checks\[1\]: should be .*; got 'los'"),
        ({"anomaly": {"checks": 3}}, r"anomaly\.checks: should be a valid tuple; got 3"),
        ({"gradient": {"nonfinite": "x" * 200}}, r"got 'x{59}\.\.\.$"),
    ],
)
def test_each_mistake_has_its_sentence(overrides: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load("1.0.0", **overrides)
