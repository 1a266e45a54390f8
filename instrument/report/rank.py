"""Which process of a distributed job this is."""

from __future__ import annotations

import os

import torch.distributed


def process_rank() -> int | None:
    """The rank of this process in its job: of the process group where there is one, else as the launcher's environment says; None alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_rank() if torch.distributed.get_world_size() > 1 else None
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return int(rank) if rank.isdecimal() and size.isdecimal() and int(size) > 1 else None


def world_size() -> int | None:
    """How many processes the job has; None alone."""
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        return torch.distributed.get_world_size()
    size = os.environ.get("WORLD_SIZE", "")
    return int(size) if size.isdecimal() and process_rank() is not None else None
