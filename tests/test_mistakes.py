"""`docs/mistakes.md` shows the message that each mistake gets."""

import re

import mistake_calls
import mistake_cases
import mistakes
import pytest

STALE = "the messages have changed; `make mistakes` writes the page"


def sections():
    """The sections of the page by heading; each begins with its heading."""
    parts = re.split(r"^(?=##)", mistakes.PAGE.read_text(), flags=re.MULTILINE)
    return {part.partition("\n")[0]: part.strip() for part in parts}


@pytest.fixture(scope="module")
def names():
    return mistakes.names_of_calls()


@pytest.mark.parametrize("group", mistake_cases.COMMANDS, ids=lambda each: each.heading)
def test_a_mistake_at_the_command_line_gets_the_line_on_the_page(group):
    rows = mistakes.rows_of_commands(group)
    expected = mistakes.table(group.heading, "status", rows).strip()
    assert sections()[f"### {group.heading}"] == expected, STALE


@pytest.mark.parametrize("group", mistake_calls.CALLS, ids=lambda each: each.heading)
def test_a_mistake_in_python_gets_the_line_on_the_page(group, names):
    rows = mistakes.rows_of_calls(group, names)
    expected = mistakes.table(group.heading, "error", rows).strip()
    assert sections()[f"### {group.heading}"] == expected, STALE


def test_the_page_has_every_table_once_and_the_names_that_the_expressions_use():
    groups = [*mistake_cases.COMMANDS, *mistake_calls.CALLS]
    headings = re.findall(r"^### (.+)$", mistakes.PAGE.read_text(), re.MULTILINE)
    assert headings == [group.heading for group in groups]
    assert f"```python\n{mistake_calls.EXAMPLE}```" in mistakes.PAGE.read_text(), STALE


@pytest.mark.parametrize(
    ("groups", "least"), [(mistake_cases.COMMANDS, 60), (mistake_calls.CALLS, 40)]
)
def test_no_mistake_is_made_twice(groups, least):
    made = [
        (group.prepare, mistakes.code_of(case))
        for group in groups
        for case in group.cases
    ]
    assert len(set(made)) == len(made) >= least
