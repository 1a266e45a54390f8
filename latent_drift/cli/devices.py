"""Devices by name."""

from __future__ import annotations

from typing import Any

from latent_drift.errors import UsageError


def device_of(name: str, local_rank: int = 0) -> Any:
    """The torch device, if this machine has it; `cuda` is the one of this process among those of a machine.

    Raises:
        UsageError: it has not, or the name is no device.
    """
    import torch

    kind, _, number = name.partition(":")
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if kind not in present or (number and not number.isdecimal()):
        raise UsageError(f"--device must be cpu, cuda, cuda:N or mps; got {name!r}")
    if not present[kind]:
        have = ", ".join(k for k, v in present.items() if v)
        raise UsageError(f"--device {name}: this machine, or this build of torch {torch.__version__}, has no {kind} device; it has {have}")
    if kind == "cuda":
        index = int(number) if number else local_rank
        if index >= torch.cuda.device_count():
            raise UsageError(f"--device cuda:{index}: this machine has {torch.cuda.device_count()} CUDA devices, numbered from 0")
        return torch.device("cuda", index)
    return torch.device(kind)
