"""The page of bad inputs and the table of promises name tests that exist."""

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
NAMED = re.compile(r"`(test_\w+\.py)(?:::(test_\w+))?`")


def named(text):
    return {(file, test) for file, test in NAMED.findall(text)}


def functions_in(file):
    tree = ast.parse((TESTS / file).read_text())
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize("page", ["tests/bad_inputs.md", "README.md"])
def test_every_test_that_a_page_names_exists(page):
    found = named((TESTS.parent / page).read_text())
    assert len(found) > 5
    missing = [
        (file, test)
        for file, test in sorted(found)
        if not (TESTS / file).exists() or (test and test not in functions_in(file))
    ]
    assert missing == []


def test_every_case_stands_on_the_page_once():
    text = (TESTS / "bad_inputs.md").read_text()
    cases = []
    for cell in re.findall(r"^\| ([\d, to]+) \|", text, re.MULTILINE):
        ends = [int(number) for number in re.findall(r"\d+", cell)]
        cases += range(ends[0], ends[1] + 1) if "to" in cell else ends
    assert sorted(cases) == list(range(1, 73))
