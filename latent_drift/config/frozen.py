"""An immutable, hashable, picklable mapping: what a frozen config may hold where a dict could be edited."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import GetCoreSchemaHandler, GetJsonSchemaHandler
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, core_schema


class FrozenMapping(Mapping[str, Any]):
    """A read-only mapping from text to plain values; nested mappings and lists are frozen too (lists become tuples).

    Equal to any mapping with equal items. Hashable, deep-copied as itself, pickled as a plain dict
    (`types.MappingProxyType` can do neither).
    """

    __slots__ = ("_items",)
    _items: dict[str, Any]

    def __init__(self, items: Mapping[str, Any] | None = None) -> None:
        object.__setattr__(self, "_items", {str(key): freeze(value) for key, value in (items or {}).items()})

    def __getitem__(self, key: str) -> Any:
        return self._items[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __setattr__(self, name: str, value: object) -> None:
        raise AttributeError(f"a FrozenMapping cannot be changed; build a new one instead of setting {name!r}")

    def __hash__(self) -> int:
        return hash(frozenset(self._items.items()))

    def __repr__(self) -> str:
        return f"FrozenMapping({self._items!r})"

    def __reduce__(self) -> tuple[type[FrozenMapping], tuple[dict[str, Any]]]:
        return FrozenMapping, (thaw(self),)

    def __deepcopy__(self, memo: dict[int, Any]) -> FrozenMapping:
        return self

    @classmethod
    def __get_pydantic_core_schema__(cls, source: type[Any], handler: GetCoreSchemaHandler) -> CoreSchema:
        plain = core_schema.no_info_before_validator_function(
            lambda value: thaw(value) if isinstance(value, FrozenMapping) else value, core_schema.dict_schema(core_schema.str_schema(strict=True))
        )
        return core_schema.no_info_after_validator_function(cls, plain, serialization=core_schema.plain_serializer_function_ser_schema(thaw))

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        return {"type": "object"}


def freeze(value: Any) -> Any:
    """`value` with its mappings as `FrozenMapping` and its lists as tuples, all the way down."""
    if isinstance(value, FrozenMapping):
        return value
    if isinstance(value, Mapping):
        return FrozenMapping(value)
    if isinstance(value, (list, tuple)):
        return tuple(freeze(element) for element in value)
    return value


def thaw(value: Any) -> Any:
    """`value` with its mappings as dicts and its tuples as lists: plain data for JSON and TOML."""
    if isinstance(value, Mapping):
        return {key: thaw(element) for key, element in value.items()}
    if isinstance(value, (list, tuple)):
        return [thaw(element) for element in value]
    return value
