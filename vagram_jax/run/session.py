"""Trains the runs of a study and writes their files: tables, checkpoints, summary.

The rows of an epoch are written before its checkpoint, so that a run that was killed at
any moment resumes to the same bytes. Each folder has one owner at a time. If several
processes train together, only the first one writes tables.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
from tqdm import tqdm

from vagram_jax import envs
from vagram_jax.analysis import summary
from vagram_jax.envs import base
from vagram_jax.run import (
    chunks,
    devices,
    failures,
    grid,
    logs,
    loop,
    memory,
    signals,
)
from vagram_jax.run.chunks import Chunk, RunLanes
from vagram_jax.run.failures import RunError
from vagram_jax.run.grid import RunSpec
from vagram_jax.run.loop import RunConfig
from vagram_jax.run.recorder import Recorder
from vagram_jax.run.rows import Progress
from vagram_jax.run.vectorized import Programs
from vagram_jax.storage import checkpoint, disk, files, lock, records, results
from vagram_jax.storage.lock import Lock

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
      strict: on `resume`, refuse a checkpoint that can't be used instead of using the
        previous one, and refuse to start at step 0 for lack of one.
      break_lock: take the lock of an owner on another machine without a heartbeat.
      log: names of loggers, see `logs`.
    """

    layout: devices.Layout = dataclasses.field(default_factory=devices.Layout)
    seed_chunk: int = 0
    checkpoint_every: int = 1
    resume: bool = False
    overwrite: bool = False
    strict: bool = False
    break_lock: bool = False
    log: tuple[str, ...] = ()

    def __post_init__(self):
        """Checks that the loggers are installed.

        Raises:
          ConfigError: as `logs.check`.
        """
        logs.check(self.log)


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
        algorithm = loop.check(
            spec.run_config, spec.algorithm, environments[key], spec.data
        )
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
    compiled: dict[tuple[str, str, str], Programs] | None = None,
    ends_early: Callable[[Chunk, Progress], bool] | None = None,
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
      compiled: the programs of earlier calls with these options; new ones are added.
      ends_early: takes lanes and their progress after each epoch; if it returns True,
        their runs are saved and stay unfinished.

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
      RunError: training was stopped by a signal, a user's code or lack of memory.
    """
    report, root = report if devices.is_first() else _ignore, Path(root).resolve()
    specs, environments = check_runs(specs)
    _check_sizes(specs, environments, options)
    if devices.is_first():
        ways = {"overwrite": options.overwrite, "resume": options.resume}
        for spec in specs:
            results.check_run(root, study, spec.name, **ways)
    folder, unfinished, statuses = root / study, [], []
    for spec in specs:
        if options.resume and _is_finished(spec, folder / spec.name):
            report(f"{spec.name}: finished already")
            _complete(spec, folder / spec.name, options, report)
        else:
            unfinished.append(spec)
    groups = grid.groups(unfinished, folder, resume=options.resume)
    for index, group in enumerate(groups):
        env = environments[grid.as_text(group[0].env_config)]
        queue = _Queue(groups[:index], group, groups[index + 1 :])
        train = partial(_train_group, options=options, report=report)
        try:
            train(queue, env, folder, compiled=compiled, ends_early=ends_early)
        except (RunError, devices.DeviceError) as error:
            if not keep_going or error.status > failures.SIGNAL:
                raise
            names = ", ".join(spec.name for spec in group)
            print(f"{names}: {error}", file=sys.stderr)
            statuses.append(error.status)
    return statuses


def _complete(
    spec: RunSpec,
    folder: Path,
    options: SessionOptions,
    report: Callable[[str], None],
) -> None:
    """Does what a process left undone that was killed after it finished a run."""
    if not devices.is_first():
        return
    lock.remove_dead(folder)
    if options.log:
        with own_folders([folder], break_lock=options.break_lock, report=report):
            seeds = loop.seeds_of(spec.run_config)
            logs.complete(options.log, folder, seeds, report=report)


def _check_sizes(
    specs: Sequence[RunSpec],
    environments: dict[str, base.Env],
    options: SessionOptions,
) -> None:
    """Refuses runs whose states can't fit in memory."""
    for spec in specs:
        env = environments[grid.as_text(spec.env_config)]
        seeds = spec.run_config.num_seeds
        lanes = min(seeds, options.seed_chunk or seeds)
        memory.check_states(spec.algorithm, env, num_lanes=lanes, layout=options.layout)


def _is_finished(spec: RunSpec, folder: Path) -> bool:
    """Whether a run has finished and has the rows of its last checkpoint."""
    if not results.is_finished(folder, spec.settings):
        return False
    objection = None
    # The user may have deleted the checkpoints, or an earlier version wrote them.
    with contextlib.suppress(checkpoint.CheckpointError):
        for step in checkpoint.steps(folder)[-1:]:
            objection = chunks.objection(spec, folder, step)
    # Only the first process checks the tables.
    return bool(devices.agree(int(objection is None)))


class _Queue(NamedTuple):
    """The runs of a command, in groups that share a program.

    Attributes:
      earlier: the groups that have been trained.
      group: the runs that are trained now.
      later: the groups that follow.
    """

    earlier: Sequence[Sequence[RunSpec]]
    group: Sequence[RunSpec]
    later: Sequence[Sequence[RunSpec]]

    def describe(self) -> str:
        """Which runs of how many these are; empty if there are no others."""
        first = sum(map(len, self.earlier)) + 1
        last = first + len(self.group) - 1
        count = last + sum(map(len, self.later))
        if count == len(self.group):
            return ""
        numbers = f"run {first}" if first == last else f"runs {first} to {last}"
        return f", {numbers} of {count}"

    def later_steps(self) -> int:
        """The steps of all seeds of the groups that follow."""
        configs = [spec.run_config for group in self.later for spec in group]
        return sum(config.num_seeds * config.total_steps for config in configs)


def _train_group(
    queue: _Queue,
    env: base.Env,
    study: Path,
    *,
    options: SessionOptions,
    report: Callable[[str], None],
    compiled: dict[tuple[str, str, str], Programs] | None,
    ends_early: Callable[[Chunk, Progress], bool] | None,
) -> None:
    """Trains runs that share a program, chunk by chunk."""
    specs, runs, num_lanes = queue.group, [], 0
    for spec in specs:
        seeds = loop.seeds_of(spec.run_config)
        lanes = slice(num_lanes, num_lanes + len(seeds))
        runs.append(RunLanes(spec, study / spec.name, seeds, lanes))
        num_lanes = lanes.stop
    folders, ended = [run.folder for run in runs], set()
    with own_folders(folders, break_lock=options.break_lock, report=report) as locks:
        if not options.overwrite:
            _create_folders(runs, options)
        names = ", ".join(spec.name for spec in specs)
        seeds = f"{num_lanes} seeds{queue.describe()}"
        report(f"{names}: compiling and warming up {seeds}")
        programs = chunks.programs(specs[0], env, options.layout, compiled)
        parts = _parts(runs, num_lanes, queue.later_steps(), options)
        train = partial(_train_chunk, options=options, ends_early=ends_early)
        with signals.catch() as stop:
            if options.overwrite:
                _check_memory(parts[0], programs, options.layout)
                _create_folders(runs, options)
            with failures.recorded(folders):
                for part in parts:
                    if not train(part, programs, locks, stop=stop, report=report):
                        ended |= {run.folder for run in part.runs}
        for run in runs if devices.is_first() else ():
            if run.folder not in ended:
                write_summary(run.folder)
                logs.complete(options.log, run.folder, run.seeds, report=report)


def _parts(
    runs: Sequence[RunLanes], num_lanes: int, later_steps: int, options: SessionOptions
) -> list[Chunk]:
    """The lanes that train at the same time, in the order in which they train."""
    run_config, parts = runs[0].spec.run_config, []
    size = min(_chunk_size(run_config, options) or num_lanes, num_lanes)
    for start in range(0, num_lanes, size):
        stop = min(start + size, num_lanes)
        later = later_steps + (num_lanes - stop) * run_config.total_steps
        part = chunks.cut(runs, start, stop)
        parts.append(Chunk(part, options.layout.padded(size), later))
    return parts


def _check_memory(chunk: Chunk, programs: Programs, layout: devices.Layout) -> None:
    """Compiles the programs before an old run is removed: they may not fit."""
    with failures.explained(None):
        loop.check_memory(
            programs, chunk.lanes, layout=layout, num_padded=chunk.num_padded
        )
    devices.agree(1)  # no process removes a file before all of them have checked


@contextlib.contextmanager
def own_folders(
    folders: Sequence[Path],
    *,
    break_lock: bool = False,
    report: Callable[[str], None] = _print,
) -> Iterator[list[Lock]]:
    """Locks the folders of runs while the block runs; makes those that are missing.

    Args:
      folders: of the runs.
      break_lock: as in `SessionOptions`.
      report: takes a line if the lock of a dead owner is taken.

    Yields:
      The locks; none in all processes but the first.

    Raises:
      LockedError: another process owns one of the runs.
      ResultsError: a folder or its lock can't be written.
    """
    with contextlib.ExitStack() as stack:
        locks = []
        for folder in folders if devices.is_first() else ():
            with files.one_line(folder):
                disk.make_folder(folder)
            # Called last: a folder that is new and whose lock is refused is removed.
            stack.callback(disk.remove_empty, folder)
            hold = lock.hold(folder, break_stale=break_lock, report=report)
            locks.append(stack.enter_context(hold))
        yield locks


def _create_folders(runs: Sequence[RunLanes], options: SessionOptions) -> None:
    """Records the settings of runs in their folders, in the first process."""
    layout = {"seed_mode": options.layout.mode, "seed_chunk": options.seed_chunk}
    for spec, folder, *_ in runs if devices.is_first() else ():
        results.create_run(
            folder.parents[1],
            folder.parent.name,
            spec.name,
            spec.settings,
            on={
                "device": devices.describe(),
                "layout": layout,
                "numerics": _numerics(),
            },
            labels=spec.labels,
            overwrite=options.overwrite,
            resume=options.resume,
        )


def _numerics() -> dict[str, Any]:
    """What else decides numbers: XLA's flags, JAX's precision and random generator."""
    return {
        "xla_flags": records.without_paths(os.environ.get("XLA_FLAGS", "")),
        "x64": jax.config.jax_enable_x64,
        "prng": jax.config.jax_default_prng_impl,
        "threefry_partitionable": jax.config.jax_threefry_partitionable,
    }


def _chunk_size(run_config: RunConfig, options: SessionOptions) -> int:
    """The number of lanes that train at the same time; 0 means all.

    On a CPU more lanes gain little (`results/benchmark`: eight seeds on one device take
    0.92 of the time of eight runs in a row). With chunks of one run, the bits of a run
    don't depend on the other runs of a study.
    """
    if options.seed_chunk or jax.default_backend() != "cpu":
        return options.seed_chunk
    return math.lcm(run_config.num_seeds, jax.device_count())


def _train_chunk(
    chunk: Chunk,
    programs: Programs,
    locks: Sequence[Lock],
    *,
    options: SessionOptions,
    stop: signals.Stop,
    report: Callable[[str], None],
    ends_early: Callable[[Chunk, Progress], bool] | None,
) -> bool:
    """Trains the lanes of one program; returns whether their runs came to their end."""
    layout, last_step = options.layout, chunk.run_config.total_steps
    restored, first_step = _restore(chunk, options, report)
    if first_step >= last_step:
        return True
    recorder = Recorder(chunk, layout, locks, log=options.log, report=report)
    recorder.writer.saved = first_step if restored else None
    train = partial(loop.train_lanes, layout=layout, num_padded=chunk.num_padded)
    if restored is None:
        train = partial(train, announce=recorder.announce)
    iterations = train(chunk.run_config, chunk.lanes, programs, restored=restored)
    received, step = 0, first_step
    with _progress_bar(last_step) as bar, recorder.writing():
        for state, progress in iterations:
            step = progress.env_steps
            bar.update(step - bar.n)
            if step == first_step:
                continue  # the rows and the checkpoint of this step exist
            recorder.append(progress)
            is_over = ends_early is not None and ends_early(chunk, progress)
            is_over = is_over or step == last_step
            received = 0 if is_over else stop.agreed()
            if is_over or received or _is_checkpoint_due(chunk, step, options):
                recorder.save(state, step)
            if is_over or received:
                break
        recorder.writer.close()
    if received:
        raise failures.stopped(received, recorder.writer)
    return step == last_step


def _restore(
    chunk: Chunk, options: SessionOptions, report: Callable[[str], None]
) -> tuple[loop.Restored | None, int]:
    """The checkpoint to resume from, and its step, -1 without one.

    Checkpoints and rows after that step are removed.
    """
    layout, restored = options.layout, None
    if options.resume:
        restored = chunks.restore(chunk, layout, strict=options.strict, report=report)
    step = restored.env_steps if restored else -1
    chunks.remove_later(chunk, layout, step)
    return restored, step


def _progress_bar(last_step: int) -> tqdm:
    """A bar of the steps, which is hidden unless standard error is a terminal."""
    is_hidden = not (devices.is_first() and sys.stderr.isatty())
    return tqdm(total=last_step, unit="step", leave=False, disable=is_hidden)


def _is_checkpoint_due(chunk: Chunk, step: int, options: SessionOptions) -> bool:
    config, every = chunk.runs[0].spec.algorithm, options.checkpoint_every
    epoch = (step - config.warmup_steps) // config.steps_per_epoch
    return every > 0 and epoch % every == 0


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
