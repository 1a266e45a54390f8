"""Autograd's nodes by the beginnings of their names: what an operation does with the elements that go in."""

from __future__ import annotations

KEEPS_ALL = (
    "View", "Unsafe", "Reshape", "Transpose", "TBackward", "Permute", "Expand", "Squeeze", "Unsqueeze", "Clone", "Alias", "Movedim", "Contiguous",
    "Flatten", "Repeat", "Flip", "Roll", "Neg", "Abs", "_FilterB", "_ResultB",
)  # fmt: skip
"""The result of one tensor holds every element of it, elsewhere or with another sign."""

_KEEPS_SOME = ("Select", "Slice", "Split", "Unbind", "AsStrided", "Chunk", "Narrow")

PASSES_ON = (*KEEPS_ALL, *_KEEPS_SOME)
"""Operations of one tensor whose result is nowhere larger than that."""

MOVES = (
    *PASSES_ON, "Cat", "Stack", "Index", "Gather", "Detach", "Copy", "Where", "MaskedFill", "_BoundedB", "StraightThroughBoundB", "Relu", "Max",
    "Min", "Embedding",
)  # fmt: skip
"""Operations that make no number: what they give is what went in, or a constant."""

TRANSPARENT = (
    *KEEPS_ALL, "Cat", "Stack", "Add", "Sub", "Sum", "Mean", "Mm", "Bmm", "Baddbmm", "Mv", "Dot", "Pow", "Log", "Sqrt", "Sin", "Cos", "Convolution",
    "NativeLayerNorm", "ToCopy",
)  # fmt: skip
"""Operations whose result is finite only if everything that went in was."""
