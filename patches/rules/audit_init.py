"""NS902 audit-init."""

from __future__ import annotations

from collections.abc import Iterator

import libcst as cst

from patches import matching as m
from patches.rules.base import AbstractRule, Hit
from patches.source import Source, dotted_name

_LAYERS = frozenset(
    "Linear LazyLinear Bilinear Conv1d Conv2d Conv3d ConvTranspose1d ConvTranspose2d ConvTranspose3d Embedding EmbeddingBag RNN LSTM GRU RNNCell"
    " LSTMCell GRUCell MultiheadAttention".split()
)


class AuditInit(AbstractRule):
    """A layer without an explicit initialisation (audit I1-I8).

    What it finds: a torch.nn layer with weights (Linear, convolutions, Embedding, recurrent cells, MultiheadAttention) whose weight no
    nn.init call names.

    Why it is bad: it is not: torch's layers initialise themselves (Linear: uniform within 1/sqrt(fan_in)). Of 14 such sites in public
    code none was a fault. In the audited script 0 of 128 units were dead; the gains that the audit proposed cut the first layer's gradient
    7.5 times; and the script's own later `apply` overwrote every one of them.

    Example:
        self.proj = nn.Linear(dim, dim)

    Use instead:
        self.proj = nn.Linear(dim, dim)    # keep it, unless the variance measured through depth says otherwise

    Fix safety: display. A note with the verdict.

    References: audit I1-I8; He et al. 2015, "Delving Deep into Rectifiers", for choosing by measured variance.
    """

    code = "NS902"
    triggers = tuple(sorted(_LAYERS))
    nodes = (cst.Call,)

    def check(self, node: cst.CSTNode, source: Source) -> Iterator[Hit]:
        assert isinstance(node, cst.Call)
        full = m.qualified(source, node.func) or ""
        if not full.startswith("torch.nn.") or full.rpartition(".")[2] not in _LAYERS or full.startswith("torch.nn.functional"):
            return
        if not _is_initialised(source, node):
            yield self.hit(node)


def _is_initialised(source: Source, node: cst.Call) -> bool:
    """Whether an nn.init call names this very layer (`nn.init.xavier_uniform_(self.proj.weight)`)."""
    statement = source.parents.get(node)
    if not isinstance(statement, cst.Assign):
        return False
    names = {dotted_name(target.target) for target in statement.targets} - {None}
    memo: set[str] | None = source.memo.get("initialised")
    if memo is None:
        memo = source.memo["initialised"] = set()
        for call in source.nodes(cst.Call):
            assert isinstance(call, cst.Call)
            if "init" in (m.qualified(source, call.func) or "") and call.args:
                memo.add((dotted_name(call.args[0].value) or "").removesuffix(".weight"))
    return bool(names & memo)
