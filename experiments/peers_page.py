"""Writes the results in docs/howto/peers.md, from results/benchmark/peers.json."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiments import peers
from experiments.claims import STUDIES
from experiments.pages import check, listed, paragraph, table
from experiments.peers_updates import OURS
from vagram_jax.storage import files

PAGE = Path("docs/howto/peers.md")
RESULTS = STUDIES.parent / "benchmark" / "peers.json"

_TOLERANCE = 0.95
"""The least ratio of times at which a peer counts as no faster per update."""

_COLUMNS = (
    "method",
    "seeds",
    "environment steps",
    "s a seed",
    "running",
    "s in all",
    "relative to VaGraM",
)

_FIGURE = """![Return against time and against steps](../../results/benchmark/peers.png)

*Median and range of the seeds; the dashed line is the return to reach.*
"""


def block() -> str:
    """The results on the page: tables, what they show, and the figure."""
    results = files.read_json(RESULTS)
    tasks = [
        _task(task, results["reached"][name]) for name, task in results["tasks"].items()
    ]
    return "\n\n".join([_about(results), _updates(results["speed"]), *tasks, _FIGURE])


def _about(results: Mapping[str, Any]) -> str:
    """The sentences before the tables."""
    fastest = [
        f"{_fastest(results['reached'][name])} on {task['gymnasium']}"
        for name, task in results["tasks"].items()
    ]
    [seeds] = {row["seeds"] for x in results["reached"].values() for row in x.values()}
    versions = [f"{name} {number}" for name, number in results["versions"].items()]
    ratios = [x for name, x in results["speed"].items() if name.endswith(", time")]
    check(min(ratios) >= _TOLERANCE, "no peer is faster per update by more than 5%")
    return paragraph(
        f"Measured on {results['device']}, with {listed(versions, 'and')}: {seeds} "
        f"seeds, each trained for at most {results['minutes']:g} minutes. "
        "No library is faster per update by more than 5%. The return is reached in the "
        f"least time by {listed(fastest, 'and by')}."
    )


def _fastest(reached: Mapping[str, Mapping[str, Any]]) -> str:
    """The method with the least time of a seed."""
    times = {name: x["seconds"] for name, x in reached.items() if x["seconds"]}
    return _name(min(times, key=lambda name: times[name]))


def _updates(speed: Mapping[str, float]) -> str:
    """The table of the updates."""
    rows = []
    for name, milliseconds in speed.items():
        if not name.endswith(", ms"):
            continue
        what, _, side = name.removesuffix(", ms").partition(", ")
        ratio = milliseconds / speed[f"{what}, {OURS}, ms"]
        rows.append([what, side, f"{milliseconds:.1f}", f"{ratio:.2f}"])
    return table(["what", "library", "ms", "relative to vagram_jax"], rows)


def _task(task: Mapping[str, Any], reached: Mapping[str, Mapping[str, Any]]) -> str:
    """The table of the methods on a task, and what it shows."""
    rows, first = [], reached["vagram"]["seconds"]
    for name, row in reached.items():
        times = [row[x] for x in ("seconds", "without_compiling", "all_seeds")]
        ratio = times[0] / first if times[0] and first else None
        rows.append(
            [
                _name(name),
                f"{row['reached']} of {row['seeds']}",
                _number(row["env_steps"], ",.0f"),
                *(_number(x, ".0f") for x in times),
                _number(ratio, ".2f"),
            ]
        )
    missed = [_name(name) for name, row in reached.items() if not row["reached"]]
    never = (
        f" (no seed of {listed(missed, 'or')} has it in this time)" if missed else ""
    )
    about = paragraph(
        f"Until a return of {task['target']:,g} on {task['gymnasium']}, medians of the "
        f"seeds{never}:"
    )
    return f"{about}\n\n{table(_COLUMNS, rows)}"


def _name(method: str) -> str:
    """The name of a method, with its library."""
    name = peers.display_name(method)
    return name if name.startswith("SBX") else f"{name} (vagram_jax)"


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)
