"""The leaves of the schema, and hypothesis strategies for valid and invalid values of each: new fields are covered on arrival."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, get_args, get_origin

import annotated_types
from hypothesis import strategies as st
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from latent_drift.config.problems import _models
from latent_drift.config.v1 import Values


@dataclass(frozen=True)
class Leaf:
    """One value of the schema outside the tagged unions: its dotted path and pydantic's description of it."""

    path: str
    info: FieldInfo

    @property
    def alternatives(self) -> list[Any]:
        """The annotations that the value may match, each with its metadata."""
        annotation = self.info.annotation
        return list(get_args(annotation)) if get_origin(annotation) not in (None, Literal, tuple) else [annotation]


def leaves_of(model: type[BaseModel], prefix: str = "") -> list[Leaf]:
    """Every value that is no section and no tagged union, in order."""
    found: list[Leaf] = []
    for name, info in model.model_fields.items():
        parts = list(_models(info.annotation))
        if len(parts) == 1:
            found += leaves_of(parts[0], f"{prefix}{name}.")
        elif not parts:
            found.append(Leaf(f"{prefix}{name}", info))
    return found


LEAVES = leaves_of(Values)
NUMBERS = [leaf for leaf in LEAVES if leaf.info.annotation in (int, float)]


def _bounds(metadata: list[Any]) -> dict[str, Any]:
    bounds: dict[str, Any] = {}
    for item in metadata:
        if isinstance(item, annotated_types.Gt):
            bounds |= {"min_value": item.gt, "exclude_min": True}
        elif isinstance(item, annotated_types.Ge):
            bounds |= {"min_value": item.ge}
        elif isinstance(item, annotated_types.Lt):
            bounds |= {"max_value": item.lt, "exclude_max": True}
        elif isinstance(item, annotated_types.Le):
            bounds |= {"max_value": item.le}
    return bounds


def _of(annotation: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    if hasattr(annotation, "__metadata__"):  # Annotated[...]: a FieldInfo holds the bounds
        inner = [item for field in annotation.__metadata__ for item in getattr(field, "metadata", [field])]
        return _of(annotation.__origin__, [*metadata, *inner])
    if get_origin(annotation) is Literal:
        return st.sampled_from(get_args(annotation))
    if annotation is bool:
        return st.booleans()
    if annotation is int:
        return st.integers(min_value=_bounds(metadata)["min_value"], max_value=2**31)
    if annotation is float:
        return st.floats(allow_nan=False, allow_infinity=False, **_bounds(metadata))
    if get_origin(annotation) is tuple:
        return st.lists(_of(get_args(annotation)[0], []), max_size=4)
    if annotation is str:
        return st.text(min_size=1, max_size=12)
    raise AssertionError(f"no strategy for {annotation!r}: extend tests/config/values.py")


def valid(leaf: Leaf) -> st.SearchStrategy[Any]:
    """Values that the schema takes at a leaf."""
    return st.one_of([_of(alternative, list(leaf.info.metadata)) for alternative in leaf.alternatives])


POSITIVE = st.floats(min_value=1e-6, max_value=1e6)

CLIPS = st.one_of(
    st.fixed_dictionaries({"kind": st.just("none")}),
    st.fixed_dictionaries({"kind": st.just("norm"), "max_norm": POSITIVE}, optional={"norm_type": st.one_of(st.just("inf"), st.floats(1.0, 10.0))}),
    st.fixed_dictionaries({"kind": st.just("value"), "max_value": POSITIVE}),
    st.fixed_dictionaries({"kind": st.just("adaptive_percentile"), "percentile": st.floats(1.0, 100.0)}, optional={"history": st.integers(20, 999)}),
    st.fixed_dictionaries({"kind": st.just("zscore"), "threshold": POSITIVE}, optional={"warmup": st.integers(2, 200), "max_norm": POSITIVE}),
    st.fixed_dictionaries({"kind": st.just("agc"), "clipping": POSITIVE}, optional={"eps": POSITIVE}),
)
"""Valid clips of every kind, with and without their secondary parameters."""


@st.composite
def overrides(draw: st.DrawFn) -> dict[str, Any]:
    """Valid overrides by dotted path: some leaves, and sometimes a clip."""
    chosen = draw(st.lists(st.sampled_from(LEAVES), max_size=6, unique_by=lambda leaf: leaf.path))
    values = {leaf.path: draw(valid(leaf)) for leaf in chosen}
    if draw(st.booleans()):
        values["gradient.clip"] = draw(CLIPS)
    if {"amp.init_scale", "amp.min_scale"} & values.keys():  # the one rule that ties two leaves
        values["amp.init_scale"] = values["amp.min_scale"] = draw(POSITIVE)
    return values
