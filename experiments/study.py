"""Runs one study of the paper's claims: trainings, table, pictures and a verdict.

    python -m experiments.study capacity --preset=quick

`quick` takes minutes on two cores (the ones with Hopper up to an hour), `full` an
accelerator. Everything is written to `results/<study>-<preset>`; given again, the
command goes on where it was interrupted. The studies:
"""

from __future__ import annotations

import difflib
import importlib
import time
from pathlib import Path

from experiments.studies import STUDIES, Plan
from vagram_jax import config
from vagram_jax.analysis import stats
from vagram_jax.cli import flags, launch
from vagram_jax.storage import files, results

PRESET = flags.DEFINE_enum("preset", "quick", ["quick", "full"], "How much of it.")
SEEDS = flags.DEFINE_integer(
    "study_seeds", 0, "How many seeds; 0: as many as the preset."
)
FIRST_SEED = flags.DEFINE_integer("first_seed", 0, "Seeds are numbered from here.")

__doc__ += "\n".join(f"  {name:22}{about}" for name, about in STUDIES.items())


def main(names: list[str]) -> int:
    """Runs a study.

    Args:
      names: of the study, one.

    Returns:
      The exit status.

    Raises:
      ConfigError: no study of that name, or a number out of range.
      ResultsError: the folder can't be made.
    """
    if len(names) != 1 or names[0] not in STUDIES:
        near = difflib.get_close_matches(" ".join(names), STUDIES, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise config.ConfigError(
            f"study {' '.join(names) or '(none)'}: one is accepted of "
            f"{', '.join(STUDIES)}{hint}"
        )
    for flag in (SEEDS, FIRST_SEED):
        if flag.value < 0:
            raise config.ConfigError(f"--{flag.name}={flag.value}; at least 0")
    if 0 < SEEDS.value < stats.MIN_SEEDS:
        raise config.ConfigError(
            f"--study_seeds={SEEDS.value}; at least {stats.MIN_SEEDS}, for with fewer "
            "there is no interval; 0 takes the preset's number"
        )
    plan = Plan(
        preset=PRESET.value,
        place=(launch.RESULTS.value, launch.study(f"{names[0]}-{PRESET.value}")),
        kept=launch.keeping(SEEDS.value or 4),
        seeds=SEEDS.value,
        first_seed=FIRST_SEED.value,
        began=time.time(),
    )
    folder = Path(plan.place[0]) / results.check_name(plan.place[1], what="study")
    with files.one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return importlib.import_module(f"experiments.studies.{names[0]}").run(plan)


if __name__ == "__main__":
    flags.run(main, takes_names=True)
