"""Tables and checked sentences of the pages that are written from the results."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from vagram_jax.analysis.study import Result
from vagram_jax.analysis.verdicts import BETTER, UNDECIDED, WORSE
from vagram_jax.storage import files

NAMES = {
    "vagram": "VaGraM",
    "vagram_mixed": "mixed VaGraM",
    "vagram_unbounded": "unbounded VaGraM",
    "vaml": "VAML",
    "mle": "MLE",
    "mle_raw": "MLE, raw targets",
    "mse": "MSE",
    "mse_raw": "MSE, raw targets",
    "mse_normalized": "MSE, normalized targets",
    "sac": "plain SAC",
}
"""How the pages call a loss or method."""


BLOCK = ("<!-- results -->", "<!-- /results -->")
"""The markers around the part of a page that is written from the results."""


def check(holds: bool, statement: str) -> None:
    """Refuses to write a sentence that the results contradict.

    Args:
      holds: whether the results support the sentence.
      statement: what they should show.

    Raises:
      ResultsError: they don't.
    """
    if not holds:
        raise files.ResultsError(
            f"the results no longer show: {statement}; rewrite the sentence in "
            "experiments/"
        )


def paragraph(text: str) -> str:
    """Returns a text in lines of at most 88 characters."""
    return textwrap.fill(text, 88, break_on_hyphens=False, break_long_words=False)


def clauses(outcomes: Mapping[str, str]) -> str:
    """Returns what follows "VaGraM" in a sentence.

    Args:
      outcomes: baselines to outcomes, see `claims.outcomes`.

    Returns:
      Text such as `beats MLE and MSE and does not differ significantly from plain SAC`.
    """
    verbs = {
        BETTER: ("beats", "and"),
        UNDECIDED: ("does not differ significantly from", "or"),
        WORSE: ("is worse than", "and"),
    }
    parts = [
        f"{verb} {listed([x for x in outcomes if outcomes[x] == outcome], last)}"
        for outcome, (verb, last) in verbs.items()
        if outcome in outcomes.values()
    ]
    return listed(parts, "and")


def significance(outcomes: Mapping[str, str]) -> str:
    """Returns the cell of a table with the significant outcomes of VaGraM.

    Args:
      outcomes: baselines to outcomes, see `claims.outcomes`.

    Returns:
      Text such as `better than MLE, MSE; worse than plain SAC`.
    """
    parts = [
        f"{outcome} than {', '.join(x for x in outcomes if outcomes[x] == outcome)}"
        for outcome in (BETTER, WORSE)
        if outcome in outcomes.values()
    ]
    return "; ".join(parts) or "not different"


def listed(names: Sequence[str], last: str) -> str:
    """Returns names as text such as `a, b and c`, for `last` "and"."""
    return f" {last} ".join(filter(None, [", ".join(names[:-1]), names[-1]]))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(result: Result, scale: float = 1.0) -> str:
    """Returns the IQM and its interval, and how many seeds diverged."""
    count, total = int(result.diverged.sum()), len(result.seeds)
    if count == total:
        return f"all {total} diverged"
    value, low, high = (rounded(scale * x) for x in result.interval)
    note = f", {count} of {total} diverged" if count else ""
    return f"{value} [{low}, {high}]{note}"


def rounded(value: float) -> str:
    """Returns a number with two digits, or without decimals from ten on."""
    return f"{value:.0f}" if abs(value) >= 10 else f"{value:.2g}"


def write_block(path: Path, block: str) -> bool:
    """Replaces the text between the markers of a page, and keeps the rest.

    Args:
      path: of the page.
      block: the new text.

    Returns:
      Whether the page exists and has the markers.

    Raises:
      ResultsError: the page can't be written.
    """
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    if not all(marker in page for marker in BLOCK):
        return False
    before, _, rest = page.partition(BLOCK[0])
    after = rest.partition(BLOCK[1])[2]
    files.write_text(path, f"{before}{BLOCK[0]}\n\n{block}\n{BLOCK[1]}{after}")
    return True
