"""Return against a number of the config, per loss, over several studies.

    python -m vagram_jax.cli.curve --x=distractors --out=results/pendulum/distractors \
      --studies=results/pendulum-0,results/pendulum-5

It reads finished studies and writes `OUT.csv` and `OUT.png`.
"""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

from vagram_jax import config
from vagram_jax.analysis import plots, summary
from vagram_jax.cli import flags
from vagram_jax.storage import files, results

STUDIES = flags.DEFINE_list("studies", [], "Folders of studies.")
X = flags.DEFINE_string("x", "distractors", "The config key on the horizontal axis.")
OUT = flags.DEFINE_string("out", "results/curve", "Where to write, without an ending.")


def main() -> int:
    """Reads the studies and writes the curve.

    Returns:
      The exit status.

    Raises:
      ConfigError: no studies, or a run without the key.
    """
    if not STUDIES.value:
        raise config.ConfigError("--studies=; at least one folder of a study")
    rows, points = [], defaultdict(dict)
    for study in STUDIES.value:
        runs = results.read_runs(study)
        floors = summary.floor_per_env(runs)
        summaries = summary.summarise(runs)
        for run in runs:
            x = results.flatten(run.config).get(X.value)
            if x is None:
                raise config.ConfigError(
                    f"--x={X.value}; the runs of {study} have no such key; known: "
                    f"{', '.join(results.flatten(run.config))}"
                )
            x = x[-1] if isinstance(x, list | tuple) else x
            floor = floors[summary.env_of(run)]
            finals = summary.final_returns(run.metrics, floor=floor)
            points[run.name][x] = finals.values
            rows.append({"loss": run.name, X.value: x} | _numbers(summaries[run.name]))
    _write(rows, points)
    return 0


def _numbers(row) -> dict[str, float]:
    kept = ("iqm", "low", "high", "seeds", "diverged", "env_steps")
    return {name: row[name] for name in kept}


def _write(rows, points) -> None:
    out = Path(OUT.value)
    out.parent.mkdir(parents=True, exist_ok=True)
    files.write_rows(out.with_suffix(".csv"), rows)
    plots.sweep(
        points,
        out.with_suffix(".png"),
        x_label=X.value,
        y_label="final return",
        title=f"Return against {X.value}",
    )
    print(f"{out}.csv, {out}.png")


if __name__ == "__main__":
    flags.run(main)
