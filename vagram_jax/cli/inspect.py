"""Measures the model of a run on new real episodes.

    vagram inspect results/hopper/vagram --horizon=5 --save=inspection

The policy of the run plays episodes in its environment that no fit has seen. From every
state, the members that imagination draws from predict 1 to `--horizon` steps with the
actions that were played. The table has the error of each state dimension and the
disagreement of the members, in standard deviations of the real change, and the error of
the value of the imagined state, in standard deviations of the values.

`--save` names a folder for `prediction.csv` and `prediction.png`; without it no file is
written. The command imports the code of the run's environment: inspect only runs of
people whom you trust.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import jax
import numpy as np

from vagram_jax import diagnostics, dynamics, evaluate
from vagram_jax.analysis import plots
from vagram_jax.cli import flags, loading
from vagram_jax.config import ConfigError
from vagram_jax.run.trained import Trained
from vagram_jax.storage import disk, files

HORIZON = flags.DEFINE_integer("horizon", 5, "Largest number of predicted steps.")
SAVE = flags.DEFINE_string("save", None, "Folder for the CSV file and the figure.")

# Folded into the key of the episodes, which no training and no evaluation uses.
_STREAM = 2**31 - 2


def main(names: list[str]) -> int:
    """Plays the episodes, prints the table and returns the exit status.

    Raises:
      ConfigError: not one run, a run without a model, or a number out of range.
    """
    run = loading.one_run("inspect", names)
    loading.check_ranges((HORIZON, 1, 100))
    if SAVE.value is not None:
        files.check_writable(Path(SAVE.value).resolve())
    loaded = loading.load(run)
    if loaded.dynamics is None:
        raise ConfigError(
            f"{run}: this run has no model (loss=none, plain SAC); inspect a run that "
            "was trained with a model loss"
        )
    print(loading.describe(run, loaded), flush=True)
    numbers = measure(loaded)
    print(table(numbers))
    if SAVE.value is not None:
        title = f"{loading.title(run)}, seed {loaded.seed}"
        write(Path(SAVE.value).resolve(), numbers, title=title)
        print(f"{SAVE.value}: prediction.csv, prediction.png")
    return 0


def measure(loaded: Trained) -> dict[str, np.ndarray]:
    """Plays episodes and returns what `diagnostics.k_step_errors` measures on them.

    Args:
      loaded: from `trained.load`, with a model.
    """
    key = jax.random.fold_in(jax.random.key(loading.EPISODE_SEED.value), _STREAM)

    @jax.jit
    @jax.default_matmul_precision(loaded.matmul_precision)
    def run(key):
        played, valid = evaluate.transitions(
            key,
            lambda key, obs: loaded.act(obs),
            env=loaded.env,
            num_episodes=loading.num_episodes(5),
        )
        model = loaded.state.dynamics
        params = dynamics.members(model.params, model.elites)
        return diagnostics.k_step_errors(
            params, played, valid, loaded.value_fn, horizon=HORIZON.value
        )

    return jax.device_get(run(key))


def table(numbers: dict[str, np.ndarray]) -> str:
    """The numbers as text: a row per state dimension, a column per number of steps.

    Args:
      numbers: from `measure`.
    """
    steps = _shown(len(numbers["rows"]))
    titles = [f"k={k}" for k in steps]
    lines = [f"{'':22}" + "".join(f"{title:>9}" for title in titles)]
    for dim in range(numbers["error_dim"].shape[1]):
        lines.append(_line(f"error of dim {dim}", numbers["error_dim"][:, dim], steps))
    for dim in range(numbers["error_dim"].shape[1]):
        values = numbers["disagreement_dim"][:, dim]
        lines.append(_line(f"disagreement, dim {dim}", values, steps))
    lines.append(_line("error of the value", numbers["value_error"], steps))
    lines.append(_line("predictions", numbers["rows"], steps, ".0f"))
    return "\n".join(lines)


def write(folder: Path, numbers: dict[str, np.ndarray], *, title: str) -> None:
    """Writes `prediction.csv`, a row per number of steps, and `prediction.png`.

    Args:
      folder: is made if missing.
      numbers: from `measure`.
      title: of the figure.

    Raises:
      ResultsError: a file can't be written.
    """
    with files.one_line(folder):
        disk.make_folder(folder)
    rows = []
    for k in range(len(numbers["rows"])):
        row: dict[str, Any] = {"steps": k + 1, "rows": int(numbers["rows"][k])}
        row["value_error"] = float(numbers["value_error"][k])
        for name in ("error_dim", "disagreement_dim"):
            for dim, value in enumerate(numbers[name][k].tolist()):
                row[f"{name}_{dim}"] = value
        rows.append(row)
    files.write_rows(folder / "prediction.csv", rows)
    plots.prediction(numbers, folder / "prediction.png", title=title)


def _shown(horizon: int) -> list[int]:
    """The numbers of steps that fit into a table."""
    if horizon <= 6:
        return [*range(1, horizon + 1)]
    powers = [2**i for i in range(6) if 2**i < horizon]
    return [*powers, horizon]


def _line(name: str, values: np.ndarray, steps: list[int], form: str = ".3g") -> str:
    return f"{name:22}" + "".join(f"{values[k - 1]:>9{form}}" for k in steps)
