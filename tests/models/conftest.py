"""What the tests of both models share."""

from __future__ import annotations

from typing import Any

import pytest

from tests.models import two_ranks


@pytest.fixture(scope="session")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Any]]:
    """What each rank computed, by the name of the body; tests that ask for it are in the xdist group "two_ranks"."""
    from tests.models.ode import test_distributed
    from tests.models.raccoon import test_ranks

    return two_ranks.on_two_ranks(test_distributed.BODIES | test_ranks.BODIES, tmp_path_factory.mktemp("ranks"))
