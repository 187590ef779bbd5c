"""The page of bad inputs and the table of promises name tests that exist."""

import functools
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
PAGE = Path(__file__).with_name("bad_inputs.md")
NAMED = re.compile(r"`(?:[\w/]+/)?(test_\w+\.py)(?:::(test_\w+))?`")


@functools.cache
def names_by_file():
    """File names to the names of the tests in them."""
    names = {}
    for path in TESTS.glob("**/test_*.py"):
        in_file = re.findall(r"^def (test_\w+)\(", path.read_text(), re.MULTILINE)
        names.setdefault(path.name, set()).update(in_file)
    return names


@pytest.mark.parametrize("page", [PAGE, TESTS.parent / "docs" / "promises.md"])
def test_every_test_that_a_page_names_exists(page):
    named, existing = set(NAMED.findall(page.read_text())), names_by_file()
    assert len(named) > 5
    missing = [
        (file, test)
        for file, test in sorted(named)
        if file not in existing or (test and test not in existing[file])
    ]
    assert missing == []


def test_the_page_lists_every_case_once():
    cases = []
    for cell in re.findall(r"^\| ([\d, to]+) \|", PAGE.read_text(), re.MULTILINE):
        ends = [int(number) for number in re.findall(r"\d+", cell)]
        cases += range(ends[0], ends[1] + 1) if "to" in cell else ends
    assert sorted(cases) == list(range(1, 73))
