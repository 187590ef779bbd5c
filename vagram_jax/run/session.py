"""Trains the runs of a study and writes their files: tables, checkpoints, summary.

The rows of an epoch are written before its checkpoint, so that a run that was killed at
any moment resumes to the same bytes. Each folder has one owner at a time. If several
processes train together, only the first one writes tables.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import jax
from tqdm import tqdm

from vagram_jax import envs
from vagram_jax.analysis import summary
from vagram_jax.envs import base
from vagram_jax.mbpo import MBPOState
from vagram_jax.run import devices, failures, grid, loop, rows, signals, states
from vagram_jax.run.failures import RunError
from vagram_jax.run.grid import RunSpec
from vagram_jax.run.loop import Lanes, Programs, RunConfig
from vagram_jax.run.rows import Progress
from vagram_jax.storage import checkpoint, files, lock, results

TABLES = ("metrics.csv", "model.csv", "timing.csv")

_print = partial(print, flush=True)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SessionOptions:
    """How runs train and how their files are treated.

    These options change results only through floating-point rounding.

    Attributes:
      layout: the devices.
      seed_chunk: train at most this many lanes at the same time; 0 means all lanes, but
        on a CPU those of one run.
      checkpoint_every: epochs between two checkpoints; 0 saves only when a run ends.
      resume: skip finished runs and resume interrupted ones.
      overwrite: replace runs that exist.
      strict: refuse a damaged checkpoint instead of using the previous one.
      break_lock: take the lock of an owner on another machine without a heartbeat.
    """

    layout: devices.Layout = dataclasses.field(default_factory=devices.Layout)
    seed_chunk: int = 0
    checkpoint_every: int = 1
    resume: bool = False
    overwrite: bool = False
    strict: bool = False
    break_lock: bool = False


def check_runs(
    specs: Sequence[RunSpec],
) -> tuple[list[RunSpec], dict[str, base.Env]]:
    """Checks runs and makes their environments; compiles nothing.

    Args:
      specs: the runs.

    Returns:
      The runs with "auto" settings resolved, and the environment of each task, by
      `grid.as_text` of its config.

    Raises:
      ConfigError: an unknown name, or settings that contradict each other.
      EnvError: an environment can't be made or trained on.
    """
    environments: dict[str, base.Env] = {}
    checked = []
    for spec in specs:
        if (key := grid.as_text(spec.env_config)) not in environments:
            environments[key] = envs.from_config(spec.env_config)
        algorithm = loop.check(spec.run_config, spec.algorithm, environments[key])
        checked.append(dataclasses.replace(spec, algorithm=algorithm))
    return checked, environments


def train_runs(
    specs: Sequence[RunSpec],
    root: str | Path,
    study: str,
    *,
    options: SessionOptions,
    keep_going: bool = False,
    report: Callable[[str], None] = _print,
) -> list[int]:
    """Trains the runs of a study and writes their files.

    Runs that differ only in numbers share a compiled program. All runs are checked
    before anything is compiled.

    Args:
      specs: the runs.
      root: the folder of all studies.
      study: name of the study.
      options: how to train.
      keep_going: after a run that fails, train the others.
      report: takes each line of output.

    Returns:
      The exit statuses of groups of runs that failed; empty unless `keep_going`.

    Raises:
      ConfigError: as `check_runs`.
      EnvError: as `check_runs`.
      ResultsError: a run exists, or a file can't be written.
      ValueError: a run can't be resumed with these settings.
      LockedError: another process owns one of the runs.
      CheckpointError: a checkpoint can't be used.
      DeviceError: the lanes need more memory than a device has.
      RunError: training was stopped by a signal, the environment or lack of memory.
    """
    report = report if devices.is_first() else _ignore
    specs, environments = check_runs(specs)
    if devices.is_first():
        ways = {"overwrite": options.overwrite, "resume": options.resume}
        for spec in specs:
            results.check_run(root, study, spec.name, **ways)
    folder, unfinished, statuses = Path(root) / study, [], []
    for spec in specs:
        if options.resume and results.is_finished(folder / spec.name, spec.settings):
            report(f"{spec.name}: finished already")
        else:
            unfinished.append(spec)
    for group in grid.groups(unfinished, folder, resume=options.resume):
        env = environments[grid.as_text(group[0].env_config)]
        try:
            _train_group(group, env, folder, options=options, report=report)
        except (RunError, devices.DeviceError) as error:
            if not keep_going or error.status > failures.SIGNAL:
                raise
            names = ", ".join(spec.name for spec in group)
            print(f"{names}: {error}", file=sys.stderr)
            statuses.append(error.status)
    return statuses


class _RunLanes(NamedTuple):
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


class _Chunk(NamedTuple):
    """Lanes that train at the same time.

    Attributes:
      runs: their runs, which differ only in numbers.
      num_padded: number of lanes of the program, a multiple of the devices.
    """

    runs: list[_RunLanes]
    num_padded: int

    @property
    def run_config(self) -> RunConfig:
        """Length, seeds and evaluations, the same for all runs."""
        return self.runs[0].spec.run_config

    @property
    def lanes(self) -> Lanes:
        """Seeds and configs of the lanes, without padding."""
        return loop.stack_lanes(
            [seed for run in self.runs for seed in run.seeds],
            [run.spec.algorithm for run in self.runs for _ in run.seeds],
        )

    def own(self, layout: devices.Layout) -> list[_RunLanes]:
        """The runs on this process's devices; lanes are counted from its first."""
        own = devices.own_lanes(layout, self.num_padded)
        return _cut(self.runs, own.start, own.stop)


def _train_group(
    specs: Sequence[RunSpec],
    env: base.Env,
    study: Path,
    *,
    options: SessionOptions,
    report: Callable[[str], None],
) -> None:
    """Trains runs that share a program, chunk by chunk."""
    runs, num_lanes = [], 0
    for spec in specs:
        seeds = loop.seeds_of(spec.run_config)
        lanes = slice(num_lanes, num_lanes + len(seeds))
        runs.append(_RunLanes(spec, study / spec.name, seeds, lanes))
        num_lanes = lanes.stop
    folders, run_config = [run.folder for run in runs], specs[0].run_config
    with own_folders(folders, break_lock=options.break_lock, report=report):
        if devices.is_first():
            _create_folders(runs, options)
        names = ", ".join(spec.name for spec in specs)
        report(f"{names}: compiling and warming up {num_lanes} seeds")
        with failures.recorded(folders), signals.catch() as stop:
            programs = loop.make_programs(run_config, env, options.layout)
            size = min(_chunk_size(run_config, options) or num_lanes, num_lanes)
            for first in range(0, num_lanes, size):
                part = _cut(runs, first, first + size)
                chunk = _Chunk(part, options.layout.padded(size))
                _train_chunk(chunk, programs, options=options, stop=stop, report=report)
        for folder in folders if devices.is_first() else ():
            write_summary(folder)


@contextlib.contextmanager
def own_folders(
    folders: Sequence[Path],
    *,
    break_lock: bool = False,
    report: Callable[[str], None] = _print,
) -> Iterator[None]:
    """Locks the folders of runs while the block runs; makes those that are missing.

    Args:
      folders: of the runs.
      break_lock: as in `SessionOptions`.
      report: takes a line if the lock of a dead owner is taken.

    Yields:
      Nothing.

    Raises:
      LockedError: another process owns one of the runs.
      ResultsError: a folder or its lock can't be written.
    """
    with contextlib.ExitStack() as stack:
        for folder in folders if devices.is_first() else ():
            with files.one_line(folder):
                folder.mkdir(parents=True, exist_ok=True)
            # Called last: a folder that is new and whose lock is refused is removed.
            stack.callback(_remove_if_empty, folder)
            stack.enter_context(
                lock.hold(folder, break_stale=break_lock, report=report)
            )
        yield


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


def _create_folders(runs: Sequence[_RunLanes], options: SessionOptions) -> None:
    """Records the settings of runs in their folders."""
    layout = {"seed_mode": options.layout.mode, "seed_chunk": options.seed_chunk}
    for spec, folder, *_ in runs:
        results.create_run(
            folder.parents[1],
            folder.parent.name,
            spec.name,
            spec.settings,
            on={"device": devices.describe(), "layout": layout},
            labels=spec.labels,
            overwrite=options.overwrite,
            resume=options.resume,
        )


def _chunk_size(run_config: RunConfig, options: SessionOptions) -> int:
    """The number of lanes that train at the same time; 0 means all.

    On a CPU more lanes gain little (`results/benchmark`: eight seeds on one device take
    0.92 of the time of eight runs in a row). With chunks of one run, the bits of a run
    don't depend on the other runs of a study.
    """
    if options.seed_chunk or jax.default_backend() != "cpu":
        return options.seed_chunk
    return math.lcm(run_config.num_seeds, jax.device_count())


def _cut(runs: Sequence[_RunLanes], start: int, stop: int) -> list[_RunLanes]:
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


def _train_chunk(
    chunk: _Chunk,
    programs: Programs,
    *,
    options: SessionOptions,
    stop: signals.Stop,
    report: Callable[[str], None],
) -> None:
    """Trains the lanes of one program to the end of their runs."""
    layout, run_config = options.layout, chunk.run_config
    restored = _restore(chunk, options, report) if options.resume else None
    first_step = restored.env_steps if restored else -1
    _remove_later(chunk, layout, first_step)
    if first_step >= run_config.total_steps:
        return
    writer = checkpoint.Writer(report, saved=first_step if restored else None)
    iterations = loop.train_lanes(
        run_config,
        chunk.lanes,
        programs,
        layout=layout,
        num_padded=chunk.num_padded,
        restored=restored,
    )
    received = 0
    with _progress_bar(run_config) as bar, failures.explained(writer):
        for state, progress in iterations:
            step = progress.env_steps
            bar.update(step - bar.n)
            if step == first_step:
                continue  # the rows and the checkpoint of this step exist
            _write_rows(chunk.runs, progress, report)
            is_last = step == run_config.total_steps
            received = 0 if is_last else stop.agreed()
            if is_last or received or _is_checkpoint_due(chunk, step, options):
                writer.save(_pieces(state, chunk, layout), step)
            if received:
                break
        writer.close()
    if received:
        raise failures.stopped(received, writer)


def _progress_bar(run_config: RunConfig) -> tqdm:
    """A bar of the steps, which is hidden unless standard error is a terminal."""
    is_hidden = not (devices.is_first() and sys.stderr.isatty())
    return tqdm(
        total=run_config.total_steps, unit="step", leave=False, disable=is_hidden
    )


def _is_checkpoint_due(chunk: _Chunk, step: int, options: SessionOptions) -> bool:
    config, every = chunk.runs[0].spec.algorithm, options.checkpoint_every
    epoch = (step - config.warmup_steps) // config.steps_per_epoch
    return every > 0 and epoch % every == 0


def _write_rows(
    runs: Sequence[_RunLanes], progress: Progress, report: Callable[[str], None]
) -> None:
    """Appends the rows of an epoch to the tables of all runs, in the first process."""
    for run in runs if devices.is_first() else ():
        spec, own = run.spec, rows.of_lanes(progress, run.lanes)
        constant = {"env": spec.env_config.env, "loss": spec.algorithm.loss}
        model = rows.model_rows(own, run.seeds, constant)
        files.append_rows(run.folder / "model.csv", model)
        timing = rows.timing_row(own, run.seeds)
        files.append_rows(run.folder / "timing.csv", [timing])
        metrics = rows.metric_rows(own, run.seeds, constant)
        files.append_rows(run.folder / "metrics.csv", metrics)
        if metrics:
            last = spec.run_config.total_steps
            report(rows.progress_line(spec.name, own, last=last))


def _remove_later(chunk: _Chunk, layout: devices.Layout, step: int) -> None:
    """Removes checkpoints and rows after a step; they would count as newer ones."""
    for run in chunk.own(layout):
        checkpoint.prune(run.folder, run.seeds, later_than=step)
    for run in chunk.runs if devices.is_first() else ():
        for name in TABLES:
            files.keep_rows(run.folder / name, env_steps=step, seeds=run.seeds)


def _pieces(
    state: MBPOState, chunk: _Chunk, layout: devices.Layout
) -> list[checkpoint.Piece]:
    """The checkpoints of this process's lanes, copied to the host."""
    arrays = states.pack(state)
    return [
        checkpoint.Piece(
            run.folder,
            run.seeds,
            {name: array[run.lanes] for name, array in arrays.items()},
        )
        for run in chunk.own(layout)
    ]


def _restore(
    chunk: _Chunk, options: SessionOptions, report: Callable[[str], None]
) -> loop.Restored | None:
    """Reads the latest checkpoint that all processes can read; None without one."""
    layout = options.layout
    own = [(run.folder, run.seeds) for run in chunk.own(layout)]
    if not own:  # this process has only copies of the last lane
        own = [(chunk.runs[-1].folder, chunk.runs[-1].seeds[-1:])]
    step = _latest_step(own, options, report)
    if step is None:
        return None
    arrays = [checkpoint.load(folder, step, seeds) for folder, seeds in own]
    for run in chunk.runs:
        report(f"{run.spec.name}: resuming from step {step}")
    return loop.Restored(
        env_steps=step,
        arrays=checkpoint.join(
            arrays, len(devices.own_lanes(layout, chunk.num_padded))
        ),
        seconds=_seconds(chunk.runs[0], step),
    )


def _latest_step(own, options: SessionOptions, report) -> int | None:
    """The latest step whose checkpoints are undamaged in every process."""
    at_most = None
    while True:
        newest = checkpoint.newest(
            own, at_most=at_most, strict=options.strict, report=report
        )
        step = -1 if newest is None else newest
        at_most = devices.agree(step)
        if devices.agree(int(step == at_most)):
            return None if at_most < 0 else at_most


def _seconds(run: _RunLanes, step: int) -> float:
    """The time that a run had taken at a step, from its table."""
    path = run.folder / "timing.csv"
    seconds = [
        row.get("wall_time_s") or 0.0
        for row in (files.read_rows(path) if path.exists() else [])
        if row.get("seed") == run.seeds[0] and row["env_steps"] <= step
    ]
    return max(seconds, default=0.0)


def write_summary(folder: Path) -> None:
    """Writes the summary of a run, which marks it as finished.

    Args:
      folder: of the run.

    Raises:
      ResultsError: a file can't be read or written.
    """
    run = results.read_run(folder)
    numbers = summary.summarize([run])[folder.name]
    numbers["diverged_at"] = {
        f"seed {row['seed']}": int(row["diverged_at"])
        for row in run.metrics
        if row["diverged_at"] is not None
    }
    files.write_json(folder / "summary.json", numbers)


def _ignore(_: str) -> None:
    """Replaces `report` in all processes but the first."""
