"""Lanes that train at the same time: their rows, checkpoints and where they resume."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vagram_jax.envs import base
from vagram_jax.mbpo import MBPOState
from vagram_jax.run import devices, grid, loop, states, tables, vectorized
from vagram_jax.run.grid import RunSpec
from vagram_jax.run.loop import RunConfig
from vagram_jax.run.tables import Tables
from vagram_jax.run.vectorized import Lanes, Programs
from vagram_jax.storage import checkpoint, records
from vagram_jax.storage.checkpoint import CheckpointError


class RunLanes(NamedTuple):
    """The lanes of one run among those of a program.

    Attributes:
      spec: the run.
      folder: its folder.
      seeds: one per lane.
      lanes: which lanes.
    """

    spec: RunSpec
    folder: Path
    seeds: range
    lanes: slice


class Chunk(NamedTuple):
    """Lanes that train at the same time.

    Attributes:
      runs: their runs, which differ only in numbers.
      num_padded: number of lanes of the program, a multiple of the devices.
      later_steps: steps of all lanes that the command will train afterwards.
    """

    runs: list[RunLanes]
    num_padded: int
    later_steps: int

    @property
    def run_config(self) -> RunConfig:
        """Length, seeds and evaluations, the same for all runs."""
        return self.runs[0].spec.run_config

    @property
    def lanes(self) -> Lanes:
        """Seeds and configs of the lanes, without padding."""
        return vectorized.stack_lanes(
            [seed for run in self.runs for seed in run.seeds],
            [run.spec.algorithm for run in self.runs for _ in run.seeds],
        )

    def own(self, layout: devices.Layout) -> list[RunLanes]:
        """The runs on this process's devices; lanes are counted from its first."""
        own = devices.own_lanes(layout, self.num_padded)
        return cut(self.runs, own.start, own.stop)


def programs(
    spec: RunSpec,
    env: base.Env,
    layout: devices.Layout,
    compiled: dict[tuple[str, str, str], Programs] | None,
) -> Programs:
    """The programs of a run, which `compiled` has already or gets now.

    Args:
      spec: the run.
      env: its environment.
      layout: the devices.
      compiled: programs by the text of a task, of a run config and of the data's
        settings; None keeps none.
    """
    key = grid.shared_settings(spec)
    compiled = {} if compiled is None else compiled
    if key not in compiled:
        compiled[key] = vectorized.make_programs(
            env,
            layout,
            eval_episodes=spec.run_config.eval_episodes,
            matmul_precision=spec.run_config.matmul_precision,
            data=spec.data,
        )
    return compiled[key]


def cut(runs: Sequence[RunLanes], start: int, stop: int) -> list[RunLanes]:
    """The parts of runs in the lanes from `start` to `stop`, counted from `start`."""
    parts = []
    for run in runs:
        offset = run.lanes.start
        low, high = max(start, offset), min(stop, run.lanes.stop)
        if low < high:
            seeds = run.seeds[low - offset : high - offset]
            lanes = slice(low - start, high - start)
            parts.append(run._replace(seeds=seeds, lanes=lanes))
    return parts


def pieces(
    state: MBPOState,
    chunk: Chunk,
    layout: devices.Layout,
    tables_of_runs: Sequence[Tables],
) -> list[checkpoint.Piece]:
    """The checkpoints of this process's lanes, copied to the host.

    Args:
      state: of all lanes.
      chunk: the lanes.
      layout: the devices.
      tables_of_runs: of the chunk's runs; empty in all processes but the first.
    """
    arrays = states.pack(state)
    notes: dict[Path, dict[str, Any]] = {
        run.folder: {checkpoint.SETTINGS: run.spec.settings} for run in chunk.runs
    }
    for run, written in zip(chunk.runs, tables_of_runs, strict=False):
        notes[run.folder] |= written.notes()
    return [
        checkpoint.Piece(
            run.folder,
            run.seeds,
            {name: array[run.lanes] for name, array in arrays.items()},
            notes[run.folder],
        )
        for run in chunk.own(layout)
    ]


def restore(
    chunk: Chunk,
    layout: devices.Layout,
    *,
    strict: bool,
    report: Callable[[str], None],
) -> loop.Restored | None:
    """Reads the latest checkpoint that all processes can use.

    Args:
      chunk: the lanes.
      layout: the devices.
      strict: refuse what can't be used instead of doing without it.
      report: takes a line on where each run resumes and on what can't be used.

    Returns:
      The checkpoint, or None to start at step 0. If rows are lost by that, the tables
      were copied to other names before.

    Raises:
      CheckpointError: as `checkpoint.newest`, or no checkpoint can be used while
        `strict`.
      ValueError: a checkpoint was made with other settings.
    """
    own = [(run.folder, run.seeds) for run in chunk.own(layout)]
    if not own:  # this process has only copies of the last lane
        own = [(chunk.runs[-1].folder, chunk.runs[-1].seeds[-1:])]
    step = _latest_step(chunk, own, strict, report)
    if step is None:
        for run in chunk.runs if devices.is_first() else ():
            _restart(run, strict, report)
        return None
    arrays = [checkpoint.load(folder, step, seeds) for folder, seeds in own]
    for run in chunk.runs:
        report(f"{run.spec.name}: resuming from step {step}")
    first = chunk.runs[0]
    return loop.Restored(
        env_steps=step,
        arrays=checkpoint.join(
            arrays, len(devices.own_lanes(layout, chunk.num_padded))
        ),
        seconds=tables.seconds(first.folder, first.seeds[0], step),
    )


def remove_later(chunk: Chunk, layout: devices.Layout, step: int) -> None:
    """Removes checkpoints and rows after a step; they would count as newer ones."""
    for run in chunk.own(layout):
        checkpoint.prune(run.folder, run.seeds, later_than=step)
    for run in chunk.runs if devices.is_first() else ():
        all_seeds = loop.seeds_of(run.spec.run_config)
        tables.remove_later(run.folder, run.seeds, step, all_seeds=all_seeds)


def unbounded(state: MBPOState, chunk: Chunk) -> list[str]:
    """Says which runs may have values without a bound. Each run is named once.

    With a discount of 1, values are bounded only if episodes terminate: an episode that
    a time limit ends counts as one that goes on.

    Args:
      state: of all lanes, after the warm-up.
      chunk: the lanes.
    """
    runs = [
        run
        for run in chunk.runs
        if run.spec.algorithm.sac.discount >= 1.0
        and run.seeds[0] == run.spec.run_config.first_seed
    ]
    if not runs:
        return []
    terminated = devices.fetch_all(state.replay.data.terminated)
    sizes = devices.fetch_all(state.replay.size)
    return [
        f"{run.spec.name}: sac.discount=1, and no episode terminated in "
        f"{sizes[run.lanes].min()} steps, so values may grow without bound; "
        "set sac.discount below 1, unless every episode terminates"
        for run in runs
        if not terminated[run.lanes].any()
    ]


def objection(spec: RunSpec, folder: Path, step: int) -> str | None:
    """Says in one line why a run can't be resumed from an undamaged checkpoint.

    Args:
      spec: the run.
      folder: of the run.
      step: of the checkpoint.

    Returns:
      The line, or None if it can.

    Raises:
      ValueError: the checkpoint was made with other settings.
    """
    for notes in checkpoint.notes(folder, step):
        settings = notes.get(checkpoint.SETTINGS)
        if not isinstance(settings, dict):
            return f"{folder}: the checkpoint of step {step} names no settings"
        records.check_settings(folder, settings, spec.settings)
        # Only the first process writes tables, which others may see later.
        lost = tables.missing(folder, notes, step) if devices.is_first() else None
        if lost is not None:
            return lost
    return None


def _latest_step(chunk: Chunk, own, strict: bool, report) -> int | None:
    """The latest step whose checkpoints every process can use."""

    def check(step: int) -> str | None:
        objections = (objection(run.spec, run.folder, step) for run in chunk.runs)
        return next((text for text in objections if text is not None), None)

    at_most = None
    while True:
        newest = checkpoint.newest(
            own, at_most=at_most, strict=strict, report=report, check=check
        )
        step = -1 if newest is None else newest
        at_most = devices.agree(step)
        if devices.agree(int(step == at_most)):
            return None if at_most < 0 else at_most


def _restart(run: RunLanes, strict: bool, report: Callable[[str], None]) -> None:
    """Says that a run without a usable checkpoint starts, and keeps its tables."""
    last_step = tables.last_step(run.folder, run.seeds)
    if last_step < 0 and not checkpoint.steps(run.folder):
        return  # it was never trained
    where = f"{run.spec.name}: no usable checkpoint of seeds {run.seeds[0]}"
    where += f" to {run.seeds[-1]}"
    # The rows of the warm-up alone are computed again in no time.
    if last_step <= run.spec.algorithm.warmup_steps:
        report(f"{where}; starting at step 0")
        return
    where += f", but rows up to step {last_step}"
    if strict:
        raise CheckpointError(
            f"{where}; restore a checkpoint, or leave out --strict to start at step 0"
        )
    copies = ", ".join(tables.set_aside(run.folder))
    report(f"{where}; starting at step 0; the old tables are kept as {copies}")
