"""Shows which runs are done, running, stopped or failed, and the time left.

    python -m vagram_jax.cli.status results/pendulum-10-sweep

A folder is a study, or one that holds studies; `results` if none is named.
"""

from __future__ import annotations

import time
from pathlib import Path

from vagram_jax.cli import flags
from vagram_jax.run import failures
from vagram_jax.storage import files, lock, results


def main(names: list[str]) -> int:
    """Prints a line for each run.

    Args:
      names: folders.

    Returns:
      The exit status.

    Raises:
      ResultsError: a folder without a run in it.
    """
    rows = [["run", "state", "step", "seeds", "return", "time", "left"]]
    for name in names or ["results"]:
        runs = sorted(path.parent for path in Path(name).glob("**/config.json"))
        if not runs:
            raise files.ResultsError(f"{name}: no run in it")
        rows += [row(folder) for folder in runs]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for cells in rows:
        padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
        print("  ".join(padded).rstrip())
    return 0


def row(folder: Path) -> list[str]:
    """How a run stands.

    Args:
      folder: of the run.

    Returns:
      Its name, state, steps, seeds, middle return, time and time left.
    """
    run = results.read_run(folder)
    total = run.config["total_steps"]
    state = _state(folder)
    step = max((r["env_steps"] for r in run.timing), default=0)
    last = max((r["env_steps"] for r in run.metrics), default=None)
    returns = [
        r["return"]
        for r in run.metrics
        if r["env_steps"] == last and r["diverged_at"] is None
    ]
    diverged = {r["seed"] for r in run.metrics if r["diverged_at"] is not None}
    seeds = str(run.config["num_seeds"])
    left = _left(run, total) if state.startswith("running") else None
    return [
        f"{folder.parent.name}/{folder.name}",
        state,
        f"{step} of {total}",
        f"{seeds}, {len(diverged)} diverged" if diverged else seeds,
        f"{sorted(returns)[len(returns) // 2]:.0f}" if returns else "-",
        _duration(run.timing[-1]["wall_time_s"]) if run.timing else "-",
        "-" if left is None else _duration(left),
    ]


def _state(folder: Path) -> str:
    if results.is_finished(folder):
        return "finished"
    owner = lock.owner(folder)
    if lock.is_held(folder):
        return f"running (pid {owner.pid} on {owner.host}, {owner.age_s:.0f} s ago)"
    if (folder / failures.FAILURE).exists():
        return f"failed: {files.read_json(folder / failures.FAILURE)['reason']}"
    return "stopped; --resume goes on"


def _left(run: results.Run, total: int) -> float | None:
    """Seconds that the rest takes at the speed so far."""
    if len(run.timing) < 2:
        return None
    first, last = run.timing[0], run.timing[-1]
    steps = last["env_steps"] - first["env_steps"]
    spent = last["wall_time_s"] - first["wall_time_s"]
    return spent / steps * (total - last["env_steps"]) if steps > 0 else None


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    shape = "%H:%M:%S" if seconds < 86_400 else f"{seconds // 86_400:.0f} d %H:%M"
    return time.strftime(shape, time.gmtime(seconds))


if __name__ == "__main__":
    flags.run(main, takes_names=True)
