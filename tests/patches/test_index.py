"""The README's index and the released rule sets are what the code says."""

from __future__ import annotations

from pathlib import Path

import patches
from patches import rulesets
from patches.findings import FINDINGS
from patches.index import HEADING, index
from patches.rules import RULES

README = Path(patches.__file__).parent / "README.md"


def test_the_index_is_the_catalogue():
    assert README.read_text().split(HEADING)[1] == index(), "write it anew: HEADING and index() of patches.index"


def test_every_source_finding_has_a_rule_and_every_other_one_says_that_it_has_none():
    with_rule = {rule.code for rule in RULES} | {"NS001"}
    assert {code for code, found in FINDINGS.items() if found.fix != "none"} == with_rule


def test_the_newest_rule_set_is_what_the_rules_are():
    """When this fails after a release, add a new set (rulesets.description) and raise the rule's revision; never edit a released file."""
    newest = rulesets.resolve("")
    assert (rulesets.FOLDER / f"{newest.version}.json").read_text() == rulesets.description(newest.version, RULES)


def test_every_released_set_can_be_chosen_from_the_installed_rules():
    for released in rulesets.released().values():
        assert {rule.code for rule in released.choose(RULES)} == set(released.revisions)
