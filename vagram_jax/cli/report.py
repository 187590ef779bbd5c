"""Rewrites the report of studies, with their figures and summaries, from their files.

    vagram report results/pendulum-15
    vagram report results/hopper --against=published.csv

It needs no accelerator and doesn't load JAX.
"""

from __future__ import annotations

import sys

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


def print_problems(study: Study) -> None:
    """Prints a line on standard error for each run that can't be read."""
    for problem in study.problems:
        print(f"{problem}; the run is left out", file=sys.stderr)


def main(folders: list[str]) -> int:
    """Writes the report of each study; returns 5 if a run couldn't be read."""
    if not folders:
        raise flags.UsageError("report: name at least one folder of a study")
    curves, status = published_curves(), 0
    for folder in folders:
        study = Study.load(folder)
        print(f"report: {report.write_report(study, curves)}")
        print_problems(study)
        status = flags.STATUS_FILES if study.problems else status
    return status
