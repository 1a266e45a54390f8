"""Checkpoints that are whole or not there, hold only finite parameters, and keep the last good one."""

from __future__ import annotations

import os
import secrets
import shutil
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor, nn

from latent_drift.errors import NumericalError, UsageError
from latent_drift.numerics.finite import is_finite, summarise

_FORMAT = 1


def save_checkpoint_with_validation(
    model: nn.Module,
    path: str | Path | torch.optim.Optimizer,
    optimizer: torch.optim.Optimizer | str | Path | None = None,
    scheduler: Any = None,
    scaler: Any = None,
    *,
    keep_previous: bool = True,
    **extra: Any,
) -> Path:
    """Write model, optimizer, scheduler, scaler and `extra` to `path`, atomically; refuse parameters that are not finite.

    Args:
        model: its state dict is saved; a DDP wrapper is looked through.
        path: where; missing folders are made. Path and optimizer may come in either order.
        optimizer, scheduler, scaler: their states, if given.
        keep_previous: whether the file that was there stays as `<path>.previous`.
        extra: plain data (numbers, strings, lists, dicts, tensors): epoch, step, config document.

    Returns:
        The path.

    Raises:
        NumericalError: a parameter or buffer holds NaN or inf (named, with statistics); nothing is written, the old file stays.

    A file that was there keeps its permissions, a new one has those of the umask.

    *Numerics*: written to a file beside it, flushed to disk, and renamed: whoever reads sees the old or the new one, whole, also if the process dies.

    >>> import tempfile, torch
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = save_checkpoint_with_validation(torch.nn.Linear(2, 1), f"{folder}/last.pt", epoch=3)
    ...     load_checkpoint(path)["epoch"]
    3
    """
    if isinstance(path, torch.optim.Optimizer) or isinstance(optimizer, (str, os.PathLike)):
        path, optimizer = optimizer, path  # type: ignore[assignment]
    if not isinstance(path, (str, os.PathLike)) or isinstance(optimizer, (str, os.PathLike)):
        raise UsageError(f"save_checkpoint_with_validation: path: expected the name of a file, got {type(path).__name__}")
    path = Path(path)
    state = _unwrapped(model).state_dict()
    bad = [f"{name}: {summarise(value)}" for name, value in state.items() if isinstance(value, Tensor) and not is_finite(value)]
    if bad:
        raise NumericalError(f"checkpoint {path.name} was not written, {len(bad)} tensors are not finite: {'; '.join(bad[:5])}")
    content: dict[str, Any] = {"format": _FORMAT, "model": state}
    for key, holder in (("optimizer", optimizer), ("scheduler", scheduler), ("scaler", scaler)):
        if holder is not None:
            content[key] = holder.state_dict()
    clash = sorted(set(extra) & {"format", "model", "optimizer", "scheduler", "scaler"})
    if clash:
        raise UsageError(f"save_checkpoint_with_validation: {', '.join(clash)} cannot be an extra entry; the checkpoint has its own")
    content.update(extra)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.partial")
    link = temporary.with_suffix(".link")
    try:
        with open(temporary, "xb") as file:  # with the permissions of the umask, where mkstemp would let nobody else read
            _serialise(content, file)
            file.flush()
            os.fsync(file.fileno())
        if path.exists():
            os.chmod(temporary, path.stat().st_mode & 0o777)
        if keep_previous and path.exists():
            previous = path.with_name(path.name + ".previous")
            try:
                os.link(path, link)  # the old file keeps its name until the new one takes it
            except OSError:  # a file system without hard links
                shutil.copy2(path, link)
            os.replace(link, previous)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        link.unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself
    finally:
        os.close(folder)
    return path


def _serialise(content: dict[str, Any], file: BinaryIO) -> None:
    """`torch.save`, with the system's own error: on a full disk torch's archive writer fails over it and raises a RuntimeError about positions."""
    try:
        torch.save(content, file)
    except RuntimeError as error:
        reason = error.__context__
        while reason is not None and not isinstance(reason, OSError):
            reason = reason.__context__
        if reason is None:
            raise
        raise OSError(reason.errno, reason.strerror) from error


def _unwrapped(model: nn.Module) -> nn.Module:
    inner: nn.Module = model.module if isinstance(model, nn.parallel.DistributedDataParallel) else model
    return inner


def load_checkpoint(
    path: str | Path,
    model: nn.Module | None = None,
    optimizer: torch.optim.Optimizer | None = None,
    scheduler: Any = None,
    scaler: Any = None,
    *,
    map_location: Any = "cpu",
    strict: bool = True,
) -> dict[str, Any]:
    """Read a checkpoint with `weights_only=True` and load its parts into what is given.

    Args:
        path: a file of `save_checkpoint_with_validation`; if it cannot be read, `<path>.previous` is taken.
        model, optimizer, scheduler, scaler: loaded in place.
        map_location: as for `torch.load`.
        strict: as for `load_state_dict`.

    Returns:
        The whole content; `loaded_from` is the file it came from.

    Raises:
        FileNotFoundError: neither file is there.
        UsageError: a part that was asked for is not in it, or neither file can be read.

    >>> import tempfile, torch
    >>> a, b = torch.nn.Linear(2, 1), torch.nn.Linear(2, 1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = load_checkpoint(save_checkpoint_with_validation(a, f"{folder}/x.pt"), b)
    >>> torch.equal(a.weight, b.weight)
    True
    """
    path = Path(path)
    candidates = [p for p in (path, path.with_name(path.name + ".previous")) if p.exists()]
    if not candidates:
        raise FileNotFoundError(f"no checkpoint at {path}")
    failures = []
    for candidate in candidates:
        try:
            content: dict[str, Any] = torch.load(candidate, map_location=map_location, weights_only=True)
        except Exception as error:  # a torn file fails in many ways: zip, pickle, EOF; each is told, none hidden
            failures.append(f"{candidate.name}: {type(error).__name__}: {error}")
            continue
        for key, target in (("model", model), ("optimizer", optimizer), ("scheduler", scheduler), ("scaler", scaler)):
            if target is None:
                continue
            if key not in content:
                raise UsageError(f"{candidate.name} holds no {key} state; it has {', '.join(content)}")
            if key == "model" and model is not None:
                _unwrapped(model).load_state_dict(content[key], strict=strict)
            else:
                target.load_state_dict(content[key])
        content["loaded_from"] = str(candidate)
        return content
    raise UsageError(f"checkpoint {path.name} cannot be read: {'; '.join(failures)}")
