"""Rewrites the report of studies, with their figures and summaries, from their files.

    vagram report results/pendulum-10

It needs no accelerator and doesn't load JAX.
"""

from __future__ import annotations

from vagram_jax.analysis import report
from vagram_jax.analysis.study import Study
from vagram_jax.cli import flags


def main(folders: list[str]) -> int:
    """Writes the report of each study and returns the exit status."""
    if not folders:
        raise flags.UsageError("report: name at least one folder of a study")
    for folder in folders:
        print(f"report: {report.write_report(Study.load(folder))}")
    return 0
