"""Results compared bit for bit: values, and everything about a tensor that a script could notice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def tensors(result: Any) -> list[Tensor]:
    """The tensors in a nest of results, in order."""
    return [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]


def _stored(x: Tensor) -> Iterator[Tensor]:
    """The dense tensors that hold what `x` is."""
    if x.is_nested:
        yield from x.unbind()
    elif x.layout is torch.sparse_coo:
        yield x._indices()
        yield x._values()
    elif x.layout in (torch.sparse_csr, torch.sparse_bsr):
        yield from (x.crow_indices(), x.col_indices(), x.values())
    elif x.layout in (torch.sparse_csc, torch.sparse_bsc):
        yield from (x.ccol_indices(), x.row_indices(), x.values())
    elif x.is_mkldnn:
        yield x.to_dense()
    elif x.is_quantized:
        yield x.int_repr()
    else:
        yield x


def stored(x: Tensor) -> list[Tensor]:
    """What `x` holds as dense, detached tensors."""
    return [part.detach() for part in _stored(x.detach())]


def is_finite(results: Any) -> bool:
    """True if no floating or complex number in a nest of results is NaN or infinite."""
    return all(
        bool(torch.isfinite(part).all())
        for x in tensors(results)
        if not x.is_meta
        for part in stored(x)
        if part.is_floating_point() or part.is_complex()
    )


def _same_numbers(a: Tensor, b: Tensor) -> bool:
    if a.is_meta:
        return True
    if a.is_conj() or a.is_neg():
        a, b = a.resolve_conj().resolve_neg(), b.resolve_conj().resolve_neg()
    # Bytes, not values: -0.0 is not 0.0 and a NaN is the NaN that it was.
    return torch.equal(_bytes(a), _bytes(b))


def _bytes(x: Tensor) -> Tensor:
    # A single element counts as contiguous whatever its stride, but is viewed as bytes only with stride 1.
    return x.contiguous().as_strided((x.numel(),), (1,)).view(torch.uint8)


def _facts(x: Tensor) -> tuple[Any, ...]:
    strides = x.stride() if x.layout is torch.strided and not x.is_nested else None
    return (type(x), x.dtype, x.layout, x.device, x.is_nested or tuple(x.shape), strides, x.requires_grad, x.is_conj(), x.is_neg(), x.is_inference())


def difference(plain: Any, guarded: Any) -> str | None:
    """How two nests of results differ, or None if they are the same to the bit, in structure, type, dtype, shape, strides and requires_grad."""
    leaves, spec = pytree.tree_flatten(plain)
    other_leaves, other_spec = pytree.tree_flatten(guarded)
    if spec != other_spec:
        return f"structure {other_spec} instead of {spec}"
    for index, (a, b) in enumerate(zip(leaves, other_leaves, strict=True)):
        if not isinstance(a, Tensor):
            if type(a) is not type(b) or not (a == b or (a != a and b != b)):
                return f"result {index}: {b!r} instead of {a!r}"
            continue
        if _facts(a) != _facts(b):
            return f"result {index}: {_facts(b)} instead of {_facts(a)}"
        for x, y in zip(stored(a), stored(b), strict=True):
            if x.shape != y.shape or x.dtype is not y.dtype or not _same_numbers(x, y):
                return f"result {index} of shape {tuple(a.shape)}, {a.dtype}: other bits"
    return None
