"""patches: the project's findings as checks and codemods on source code.

Importing this package loads neither torch nor libcst.
"""

from patches.findings import FAMILIES, FINDINGS, Finding, finding

__all__ = ["FAMILIES", "FINDINGS", "Finding", "finding"]
