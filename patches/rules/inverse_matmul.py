"""NS702 inverse-matmul."""

from __future__ import annotations

import re
from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit
from patches.source import Source

_INVERSES = ("inverse", "linalg.inv", "inv")
_SMALL = re.compile(r"^[TR]\d?$|^K\d$|^[TR]_|intrinsic|extrinsic|camera|cam_|_cam|pose|homograph|transform|rotation|theta|affine", re.IGNORECASE)
"""Matrices of geometry: 3 x 3 or 4 x 4, and as well-conditioned as the camera."""


class InverseMatmul(AbstractRule):
    """A matrix inverse that is made only to be multiplied.

    What it finds: `torch.inverse(A) @ b` and `b @ torch.linalg.inv(A)` with the inverse written in the product, also as mm, bmm, mv and matmul.

    Why it is bad: the inverse has its own rounding error, of size cond(A) * eps * |A^-1|, and the product adds to it: for an
    ill-conditioned A the residual is worse than solve's by a factor of up to cond(A). It also costs three times as much.

    Example:
        x = torch.inverse(A) @ b

    Use instead:
        x = torch.linalg.solve(A, b)

    Fix safety: display. solve wants b with the batch shape of A, and b @ inverse(A) is solve(A, b, left=False).

    References: Higham 2002, "Accuracy and Stability of Numerical Algorithms", section 14.1.
    """

    code = "NS702"
    words = ("inverse", "inv", "pinverse", "pinv")
    nodes = (cst.BinaryOperation, cst.Call)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        if isinstance(node, cst.BinaryOperation):
            sides = m.binary(node, "@")
            factors = list(sides) if sides is not None else []
        else:
            product = m.operation(source, node, "matmul", "mm", "bmm", "mv")
            if product is None:
                return
            factors = [product.input, *(arg.value for arg in product.rest[:1])]
        parent = source.parents.get(node)
        if parent is not None and m.binary(parent, "@") is not None:
            return  # inv(S) @ A @ S: a change of basis, by small matrices as a rule
        inverses = [factor for factor in factors if _is_inverse(source, factor)]
        if len(inverses) == 1:
            yield self.hit(node)


def _is_inverse(source: Source, node: cst.BaseExpression) -> bool:
    if not isinstance(node, cst.Call):
        return False
    found = m.operation(source, node)
    if found is None or found.name not in _INVERSES or not found.plain:
        return False
    if _SMALL.search(source.code(found.input)):
        return False
    # Transforms, rotations and bijectors have an `inverse()` too.
    return found.form == "function" or (found.name != "inv" and m.value_of(source, found.input).kind == "tensor")
