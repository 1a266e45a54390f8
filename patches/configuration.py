"""`[tool.latent-drift.patches]` in pyproject.toml, and options over it."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patches import selection
from patches.errors import PatchesUsageError
from patches.settings import Settings

KEYS = ("select", "ignore", "unsafe", "dtype", "target-torch", "bound", "ruleset", "per-file-ignores", "baseline", "exclude", "output")
DTYPES = {"half": "float16", "fp16": "float16", "float": "float32", "double": "float64", "bf16": "bfloat16", "fp32": "float32", "fp64": "float64"}
OUTPUTS = ("text", "json", "sarif", "github")
BOUNDS = ("returning", "clamp")


@dataclass(frozen=True, slots=True)
class Configuration:
    """What pyproject.toml and the command line come to."""

    settings: Settings
    baseline: Path | None = None
    exclude: tuple[str, ...] = ()
    output: str = "text"


def find_table(start: Path) -> tuple[dict[str, Any], Path | None]:
    """The table of the nearest pyproject.toml that has one, from a path upward, and that file.

    Raises:
        PatchesUsageError: a pyproject.toml on the way is not TOML.
    """
    folder = start.resolve()
    for candidate in (folder, *folder.parents):
        path = candidate / "pyproject.toml"
        if path.is_file():
            try:
                data = tomllib.loads(path.read_text(encoding="utf-8"))
            except tomllib.TOMLDecodeError as error:
                raise PatchesUsageError(f"{path}: {error}") from error
            table = data.get("tool", {}).get("latent-drift", {}).get("patches")
            if table is not None:
                return table, path
    return {}, None


def configure(table: Mapping[str, Any], origin: Path | None, given: Mapping[str, Any]) -> Configuration:
    """The table with the options that were given (not None) over it.

    Raises:
        PatchesUsageError: every unknown key, wrong type and unknown code, in one message.
    """
    problems: list[str] = []
    where = f"{origin}: [tool.latent-drift.patches]" if origin is not None else "settings"
    for key in table:
        if key not in KEYS:
            from difflib import get_close_matches

            near = get_close_matches(key, KEYS, n=1)
            problems.append(f"{where}: unknown key {key!r}" + (f"; did you mean {near[0]!r}?" if near else f"; known: {', '.join(KEYS)}"))
    merged = {key: table[key] for key in KEYS if key in table}
    merged.update({key: value for key, value in given.items() if value is not None})

    def attempt(read: Any, key: str, default: Any) -> Any:
        if key not in merged:
            return default
        try:
            return read(merged[key], f"--{key}" if given.get(key) is not None else f"{where} {key}")
        except PatchesUsageError as error:
            problems.append(str(error))
            return default

    settings = Settings(
        dtype=attempt(_dtype, "dtype", None),
        target_torch=attempt(_version, "target-torch", None),
        bound=attempt(_choice(BOUNDS), "bound", "returning"),
        select=attempt(_codes, "select", ()),
        ignore=attempt(_codes, "ignore", ()),
        unsafe=attempt(_flag, "unsafe", False),
        per_file_ignores=attempt(_per_file, "per-file-ignores", {}),
        ruleset=attempt(_text, "ruleset", ""),
    )
    baseline = attempt(_text, "baseline", None)
    base = origin.parent if origin is not None and given.get("baseline") is None else Path()
    configuration = Configuration(
        settings, base / baseline if baseline else None, attempt(_strings, "exclude", ()), attempt(_choice(OUTPUTS), "output", "text")
    )
    if problems:
        raise PatchesUsageError("\n".join(problems))
    return configuration


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str):
        raise PatchesUsageError(f"{where}: expected a string, got {value!r}")
    return value


def _flag(value: Any, where: str) -> bool:
    if not isinstance(value, bool):
        raise PatchesUsageError(f"{where}: expected true or false, got {value!r}")
    return value


def _strings(value: Any, where: str) -> tuple[str, ...]:
    if isinstance(value, str) or not isinstance(value, Sequence) or not all(isinstance(item, str) for item in value):
        raise PatchesUsageError(f"{where}: expected a list of strings, got {value!r}")
    return tuple(value)


def _codes(value: Any, where: str) -> tuple[str, ...]:
    items = _strings([value] if isinstance(value, str) else value, where)
    codes = tuple(code.strip() for item in items for code in item.split(",") if code.strip())
    selection.validate(codes, where)
    return codes


def _per_file(value: Any, where: str) -> dict[str, tuple[str, ...]]:
    if not isinstance(value, Mapping):
        raise PatchesUsageError(f"{where}: expected a table of pattern = [codes], got {value!r}")
    return {str(pattern): _codes(codes, f"{where} {pattern!r}") for pattern, codes in value.items()}


def _dtype(value: Any, where: str) -> str:
    text = _text(value, where).removeprefix("torch.")
    name = DTYPES.get(text, text)
    if name not in ("float16", "bfloat16", "float32", "float64"):
        raise PatchesUsageError(f"{where}: expected float16, bfloat16, float32 or float64, got {value!r}")
    return name


def _version(value: Any, where: str) -> tuple[int, int]:
    match = re.fullmatch(r"(?:>=)?\s*(\d+)(?:\.(\d+))?(?:\.\w+)*(?:\+\w+)?", str(value).strip())
    if match is None:
        raise PatchesUsageError(f"{where}: expected a torch version such as 2.4, got {value!r}")
    return int(match[1]), int(match[2] or 0)


def _choice(options: Sequence[str]) -> Any:
    def read(value: Any, where: str) -> str:
        if value not in options:
            raise PatchesUsageError(f"{where}: expected one of {', '.join(options)}, got {value!r}")
        return str(value)

    return read
