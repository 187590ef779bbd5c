"""Rewrites the report of studies, with their figures and summaries, from their files.

    vagram report results/pendulum-10
    vagram report results/hopper --against=published.csv

It needs no accelerator and doesn't load JAX.
"""

from __future__ import annotations

from vagram_jax.analysis import published, report
from vagram_jax.analysis.study import Study
from vagram_jax.cli import flags

AGAINST = flags.DEFINE_string(
    "against", None, "CSV file of published learning curves to draw beside the runs."
)


def published_curves():
    """Returns the curves of `--against`, or None without it.

    Raises:
      ResultsError: the file can't be read.
    """
    return None if AGAINST.value is None else published.load(AGAINST.value)


def main(folders: list[str]) -> int:
    """Writes the report of each study and returns the exit status."""
    if not folders:
        raise flags.UsageError("report: name at least one folder of a study")
    curves = published_curves()
    for folder in folders:
        print(f"report: {report.write_report(Study.load(folder), curves)}")
    return 0
