"""Which files a command looks at: paths as given, folders walked, .gitignore respected."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from patches.errors import PatchesUsageError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

SUFFIXES = (".py", ".ipynb")
_SKIPPED = frozenset({"__pycache__", "node_modules", "site-packages", ".git", ".hg", ".svn", ".tox", ".nox", ".venv", ".mypy_cache", ".ruff_cache"})


def find_files(paths: Iterable[Path], exclude: tuple[str, ...] = ()) -> list[Path]:
    """Files to look at, sorted, each once. A file that is named is taken even if it is ignored by git.

    Raises:
        PatchesUsageError: a path does not exist, or a named file is neither Python nor a notebook.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_file():
            if path.suffix not in SUFFIXES and not _is_python_script(path):
                raise PatchesUsageError(f"{path} is neither a Python file nor a notebook. Give *.py or *.ipynb files, or a folder to search for them")
            found[path] = None
        elif path.is_dir():
            found.update(dict.fromkeys(_walk(path, exclude)))
        else:
            raise PatchesUsageError(f"{path} does not exist. Give Python files, notebooks, or folders to search for them")
    return list(found)


def _is_python_script(path: Path) -> bool:
    try:
        with path.open("rb") as stream:
            first = stream.readline(200)
    except OSError:
        return False
    return first.startswith(b"#!") and b"python" in first


def _walk(root: Path, exclude: tuple[str, ...]) -> Iterator[Path]:
    from pathspec import GitIgnoreSpec

    own = GitIgnoreSpec.from_lines(exclude)
    specs = [(root.resolve(), own), *_specs_above(root)]
    yield from _walk_folder(root, specs)


def _walk_folder(folder: Path, specs: list[tuple[Path, GitIgnoreSpec]]) -> Iterator[Path]:
    here = _read_spec(folder)
    if here is not None:
        specs = [*specs, (folder.resolve(), here)]
    try:
        entries = sorted(folder.iterdir())
    except OSError:
        return
    absolute = folder.resolve()
    for entry in entries:
        is_folder = entry.is_dir()
        if _is_ignored(absolute / entry.name, specs, is_folder):
            continue
        if is_folder:
            if entry.name not in _SKIPPED and not entry.is_symlink() and not (entry / "pyvenv.cfg").exists():
                yield from _walk_folder(entry, specs)
        elif entry.suffix in SUFFIXES and entry.is_file():
            yield entry


def _read_spec(folder: Path) -> GitIgnoreSpec | None:
    from pathspec import GitIgnoreSpec

    path = folder / ".gitignore"
    try:
        return GitIgnoreSpec.from_lines(path.read_text(encoding="utf-8", errors="replace").splitlines())
    except OSError:
        return None


def _specs_above(root: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    """The .gitignore files of the folders above, up to the repository's top; none outside a repository."""
    found: list[tuple[Path, GitIgnoreSpec]] = []
    resolved = root.resolve()
    if (resolved / ".git").exists():
        return []
    for folder in resolved.parents:
        spec = _read_spec(folder)
        if spec is not None:
            found.append((folder, spec))
        if (folder / ".git").exists():
            return found[::-1]
    return []


def _is_ignored(absolute: Path, specs: list[tuple[Path, GitIgnoreSpec]], is_folder: bool) -> bool:
    verdict = False
    for base, spec in specs:  # outer first: an inner file's `!pattern` wins
        relative = absolute.relative_to(base).as_posix() + ("/" if is_folder else "")
        result = spec.check_file(relative)
        if result.include is not None:
            verdict = result.include
    return verdict
