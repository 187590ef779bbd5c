"""Runs one study of the paper's claims: trainings, tables, figures and a verdict.

    python -m experiments.study capacity --preset=quick
    python -m experiments.study --write_findings

`quick` takes minutes on two cores, or up to an hour for MuJoCo tasks; `full` needs an
accelerator. Everything is written to `results/<study>-<preset>`; the same command
continues an interrupted study. `--write_findings` writes docs/findings.md.
"""

from __future__ import annotations

import difflib
from pathlib import Path

from experiments import studies
from vagram_jax import config
from vagram_jax.analysis import stats
from vagram_jax.cli import flags, launch
from vagram_jax.storage import files, results

PRESET = flags.DEFINE_enum("preset", "quick", ["quick", "full"], "Size of the study.")
SEEDS = flags.DEFINE_integer("study_seeds", None, "Number of seeds.")
FIRST_SEED = flags.DEFINE_integer("first_seed", None, "The first seed.")
WRITE_FINDINGS = flags.DEFINE_bool("write_findings", False, "Write docs/findings.md.")

__doc__ += "\nStudies:\n\n" + "\n".join(
    f"  {name:23}{about}" for name, about in studies.descriptions().items()
)


def main(names: list[str]) -> int:
    """Runs the named study; returns the exit status."""
    if WRITE_FINDINGS.value and not names:
        from experiments import findings

        print("\n".join(f"written: {path}" for path in findings.write()))
        return 0
    known = studies.descriptions()
    if len(names) != 1 or names[0] not in known:
        near = difflib.get_close_matches(" ".join(names), known, n=1)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise config.ConfigError(
            f"study={' '.join(names) or 'none'}; one of {', '.join(known)} is accepted"
            f"{hint}"
        )
    if FIRST_SEED.value is not None and FIRST_SEED.value < 0:
        raise config.ConfigError(f"--first_seed={FIRST_SEED.value}; at least 0")
    if SEEDS.value is not None and SEEDS.value < stats.MIN_SEEDS:
        raise config.ConfigError(
            f"--study_seeds={SEEDS.value}; at least {stats.MIN_SEEDS}, because fewer "
            "give no interval"
        )
    name = launch.study(f"{names[0]}-{PRESET.value}")
    folder = Path(launch.RESULTS.value) / results.check_name(name, what="study")
    options = launch.keeping(SEEDS.value or 4)
    with files.one_line(folder):
        folder.mkdir(parents=True, exist_ok=True)
    return studies.load(names[0]).run(
        PRESET.value,
        folder,
        options=options,
        num_seeds=SEEDS.value,
        first_seed=FIRST_SEED.value,
    )


if __name__ == "__main__":
    flags.run(main, takes_names=True)
