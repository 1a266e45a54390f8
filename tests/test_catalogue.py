"""One catalogue for run time and source: codes are distinct, and every finding that a guard can report is in it."""

import re

import pytest

from instrument.guards import OPERATION_GUARDS
from patches.findings import FAMILIES, FINDINGS, finding


def test_codes_and_names_are_distinct_and_well_formed():
    assert len({f.name for f in FINDINGS.values()}) == len(FINDINGS)
    for code, found in FINDINGS.items():
        assert re.fullmatch(r"NS\d\d\d", code)
        assert found.code == code
        assert re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", found.name)
        assert found.family in FAMILIES or code.startswith("NS0"), "NS0xx are the tool speaking of itself"
        assert found.summary
        assert found.remedy
    assert list(FINDINGS) == sorted(FINDINGS)


@pytest.mark.parametrize("guard", OPERATION_GUARDS, ids=lambda g: type(g).__name__)
def test_every_guard_has_its_finding_a_page_and_spellings(guard):
    assert guard.finding.code == guard.code
    assert guard.spellings()
    assert type(guard).__doc__
    module = __import__(type(guard).__module__, fromlist=["x"])
    assert guard.code in (module.__doc__ or ""), "the guard's page names its finding"


def test_lookup_by_code_or_name_and_the_closest_for_a_typo():
    assert finding("NS201") is finding("exp-logvar")
    with pytest.raises(KeyError, match="exp-logvar"):
        finding("exp-logvra")
