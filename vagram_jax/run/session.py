"""A run on disk while it trains: its tables, checkpoints, lock, stopping and resuming.

Comes in: jobs, each with a folder. Goes out: their files, row by row, in the order that
lets a run which is killed at any moment go on as if nothing had happened: first the
rows of an epoch, then its checkpoint. What an epoch is, is decided in `runner`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import jax
from tqdm import tqdm

from vagram_jax import training
from vagram_jax.envs import base
from vagram_jax.run import devices, programs, progress, runner
from vagram_jax.run.progress import Progress
from vagram_jax.run.runner import RunConfig
from vagram_jax.storage import checkpoint, files, lock
from vagram_jax.training import MBPOConfig, MBPOState

TABLES = ("metrics.csv", "model.csv", "timing.csv")
FAILURE = "failure.json"
_STATUS = re.compile(r"[A-Z_]+: ")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Keeping:
    """Where runs train and how they are kept. No result depends on it but by rounding.

    Attributes:
      layout: where lanes run.
      seed_chunk: train at most so many lanes at once, one chunk after the other; 0 all.
      checkpoint_every: epochs between two checkpoints; 0 saves only when a run ends.
      resume: go on from the latest checkpoint, where there is one.
      strict: refuse a damaged checkpoint instead of using the one before.
      break_lock: take a lock from an owner on another machine who shows no heartbeat.
    """

    layout: devices.Layout = dataclasses.field(default_factory=devices.Layout)
    seed_chunk: int = 0
    checkpoint_every: int = 1
    resume: bool = False
    strict: bool = False
    break_lock: bool = False


class Job(NamedTuple):
    """One run among those that train side by side.

    Attributes:
      folder: from `results.create_run`.
      env_name: what its rows call the environment.
      config: its algorithm, what `check` returned.
    """

    folder: Path
    env_name: str
    config: MBPOConfig


class RunError(RuntimeError):
    """A run that had to stop. One line: why, what was saved, how to go on.

    Attributes:
      status: the exit status that a command ends with.
    """

    def __init__(self, message: str, status: int):
        super().__init__(message)
        self.status = status


def train_to_files(
    run: RunConfig,
    jobs: Sequence[Job],
    env: base.Env,
    *,
    keeping: Keeping,
    tell: Callable[[str], None] = print,
) -> None:
    """Trains all seeds of all jobs side by side, and writes what happens as it happens.

    Args:
      run: how long, how many, how often.
      jobs: alike in all that decides a shape or a branch.
      env: the environment.
      keeping: where they train and how they are kept.
      tell: takes a line of text after each evaluation.

    Raises:
      LockedError: another process owns one of the runs.
      CheckpointError: a checkpoint can't be used.
      DeviceError: more than a device holds.
      ResultsError: a file can't be written.
      RunError: stopped by a signal, by the environment, or for want of memory.
    """
    tell = tell if devices.is_first() else _say_nothing
    lanes = [(job, seed) for job in jobs for seed in runner.seeds_of(run)]
    size = min(keeping.seed_chunk or len(lanes), len(lanes))
    with _noting_failure(jobs), _on_signals() as stop:
        compiled = runner.compiled(run, env, keeping.layout)
        context = _Context(run, compiled, keeping, stop, tell)
        for first in range(0, len(lanes), size):
            part = _Part(lanes[first : first + size], keeping.layout.padded(size))
            _train_part(part, context)


@contextlib.contextmanager
def owning(
    folders: Sequence[Path],
    *,
    break_lock: bool = False,
    tell: Callable[[str], None] = print,
) -> Iterator[None]:
    """Owns the folders of runs, which are made if missing, while the block lasts.

    Whatever changes a run belongs in it: making its folder anew, training, its summary.

    Args:
      folders: of runs.
      break_lock: as in `Keeping`.
      tell: takes a line when a dead owner's lock is taken over.

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
            # Called last: a folder that is refused and was not there is gone again.
            stack.callback(_remove_if_empty, folder)
            stack.enter_context(lock.hold(folder, break_stale=break_lock, tell=tell))
        yield


def _remove_if_empty(folder: Path) -> None:
    with contextlib.suppress(OSError):
        folder.rmdir()


@contextlib.contextmanager
def _noting_failure(jobs: Sequence[Job]) -> Iterator[None]:
    """Leaves in each folder why its run stopped, unless somebody asked it to."""
    try:
        yield
    except Exception as error:
        if devices.is_first() and getattr(error, "status", 0) <= 128:
            for job in jobs:
                with contextlib.suppress(files.ResultsError):  # the disk may be full
                    files.write_json(job.folder / FAILURE, {"reason": str(error)})
        raise


class _Context(NamedTuple):
    """What the parts of a session share."""

    run: RunConfig
    compiled: programs.Programs
    keeping: Keeping
    stop: _Stop
    tell: Callable[[str], None]


class _Part:
    """Lanes that train at once: seeds of jobs, one job after the other."""

    def __init__(self, lanes: Sequence[tuple[Job, int]], padded: int):
        self.padded = padded
        self.lanes = programs.lanes(
            [seed for _, seed in lanes], [job.config for job, _ in lanes]
        )
        jobs = dict.fromkeys(job.folder for job, _ in lanes)
        by_folder = {job.folder: job for job, _ in lanes}
        self.jobs: list[tuple[Job, slice]] = []
        for folder in jobs:
            rows = [i for i, (job, _) in enumerate(lanes) if job.folder == folder]
            self.jobs.append((by_folder[folder], slice(rows[0], rows[-1] + 1)))

    def seeds(self, rows: slice) -> range:
        """The numbers of the seeds of some rows, of one job."""
        numbers = self.lanes.seeds[rows]
        return range(int(numbers[0]), int(numbers[-1]) + 1)

    def own(self, layout: devices.Layout) -> list[tuple[Job, slice]]:
        """The jobs and rows that are on this process's devices, without padding."""
        mine = devices.own_lanes(layout, self.padded)
        cut = [
            (job, slice(max(rows.start, mine.start), min(rows.stop, mine.stop)))
            for job, rows in self.jobs
        ]
        return [(job, rows) for job, rows in cut if rows.start < rows.stop]


def _train_part(part: _Part, context: _Context) -> None:
    """Trains the lanes of one program to the end of all of their runs."""
    run, keeping, layout = context.run, context.keeping, context.keeping.layout
    begin = _restore(part, keeping, context.tell) if keeping.resume else None
    step = begin.env_steps if begin else -1
    # What is later goes: left there, it would pass for newer than what comes now.
    for job, rows in part.own(layout):
        checkpoint.prune(job.folder, part.seeds(rows), later_than=step)
    if devices.is_first():
        _cut_back(part, step)
    if step >= run.total_steps:
        return
    writer = checkpoint.Writer(context.tell, saved=begin and step)
    turns = runner.train_lanes(
        run,
        part.lanes,
        context.compiled,
        layout=layout,
        padded=part.padded,
        begin=begin,
    )
    asked = 0
    with _bar(run) as bar, _explained(writer):
        for states, told in turns:
            bar.update(told.env_steps - bar.n)
            if told.env_steps == step:
                continue  # what it resumes from is written and saved
            if devices.is_first():
                _write(run, part, told, context.tell)
            ends = told.env_steps == run.total_steps
            asked = 0 if ends else _agreed(context.stop)
            if ends or asked or _is_due(told, part, keeping):
                writer.save(_pieces(states, part, layout), told.env_steps)
            if asked:
                break
        writer.close()
    if asked:
        raise RunError(
            f"stopped by {signal.Signals(asked).name}; saved at step {writer.saved}; "
            "go on with --resume",
            128 + asked,
        )


def _bar(run: RunConfig) -> tqdm:
    """A bar of the steps, where somebody sees it."""
    is_hidden = not (devices.is_first() and sys.stderr.isatty())
    return tqdm(total=run.total_steps, unit="step", leave=False, disable=is_hidden)


def _is_due(told: Progress, part: _Part, keeping: Keeping) -> bool:
    """Whether it is the time of a checkpoint."""
    config, every = part.lanes.configs, keeping.checkpoint_every
    epoch = (told.env_steps - config.warmup_steps) // config.steps_per_epoch
    return every > 0 and epoch % every == 0


def _write(run: RunConfig, part: _Part, told: Progress, tell) -> None:
    """Adds what one turn found to the tables of all jobs."""
    config = part.lanes.configs
    for job, rows in part.jobs:
        seeds, own = part.seeds(rows), progress.of_lanes(told, rows)
        constant = {"env": job.env_name, "loss": job.config.loss}
        if own.metrics and config.loss != training.NO_MODEL:
            model = progress.model_rows(own, seeds, constant)
            files.append_rows(job.folder / "model.csv", model)
        timing = progress.timing_row(own, seeds)
        files.append_rows(job.folder / "timing.csv", [timing])
        if own.returns.size:
            metrics = progress.metric_rows(own, seeds, constant)
            files.append_rows(job.folder / "metrics.csv", metrics)
            first, last = config.warmup_steps, run.total_steps
            tell(progress.line(job.folder.name, own, first=first, last=last))


def _cut_back(part: _Part, step: int) -> None:
    """Takes from all tables what these seeds wrote after a step."""
    for job, rows in part.jobs:
        seeds = part.seeds(rows)
        for name in TABLES:
            files.keep_rows(job.folder / name, env_steps=step, seeds=seeds)


def _pieces(
    states: MBPOState, part: _Part, layout: devices.Layout
) -> list[checkpoint.Piece]:
    """What this process has of each job, copied to the host."""
    arrays = checkpoint.pack(states)
    start = devices.own_lanes(layout, part.padded).start
    return [
        checkpoint.Piece(
            job.folder,
            part.seeds(rows),
            {
                name: array[rows.start - start : rows.stop - start]
                for name, array in arrays.items()
            },
        )
        for job, rows in part.own(layout)
    ]


def _restore(part: _Part, keeping: Keeping, tell) -> runner.Begin | None:
    """What is saved of this process's lanes at the latest step that all can read."""
    layout = keeping.layout
    own = [(job.folder, part.seeds(rows)) for job, rows in part.own(layout)]
    if not own:  # its devices hold padding alone, which repeats the last lane
        own = [(part.jobs[-1][0].folder, [int(part.lanes.seeds[-1])])]
    step = _agreed_step(own, keeping, tell)
    if step is None:
        return None
    read = [checkpoint.load(folder, step, seeds) for folder, seeds in own]
    for job, _ in part.jobs:
        tell(f"{job.folder.name}: going on from step {step}")
    return runner.Begin(
        env_steps=step,
        arrays=checkpoint.join(read, len(devices.own_lanes(layout, part.padded))),
        seconds=_seconds(part.jobs[0][0].folder, int(part.lanes.seeds[0]), step),
    )


def _agreed_step(own, keeping: Keeping, tell) -> int | None:
    """The latest step that every process finds whole; None if there is none."""
    at_most = None
    while True:
        found = checkpoint.newest(
            own, at_most=at_most, strict=keeping.strict, tell=tell
        )
        mine = -1 if found is None else found
        at_most = devices.agree(mine)
        if devices.agree(int(mine == at_most)):
            return None if at_most < 0 else at_most


def _seconds(folder: Path, seed: int, step: int) -> float:
    """How long a run had taken at a step, by its table."""
    path = folder / "timing.csv"
    rows = files.read_rows(path) if path.exists() else []
    spent = [
        row.get("wall_time_s") or 0.0
        for row in rows
        if row.get("seed") == seed and row["env_steps"] <= step
    ]
    return max(spent, default=0.0)


class _Stop:
    """The signal that asked for an end, 0 as long as none did."""

    signal = 0


@contextlib.contextmanager
def _on_signals() -> Iterator[_Stop]:
    """Lets the first signal end training after the epoch; a second one ends it now."""
    stop = _Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop  # only the main thread may have handlers
        return

    def ask(number, _):
        if stop.signal:
            raise KeyboardInterrupt
        stop.signal = number
        print(
            f"{signal.Signals(number).name}: saving after this epoch; once more ends "
            "at once",
            file=sys.stderr,
        )

    asking = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = {number: signal.signal(number, ask) for number in asking}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _agreed(stop: _Stop) -> int:
    """The signal that any process got: all of them must stop at the same step."""
    return -devices.agree(-stop.signal)


@contextlib.contextmanager
def _explained(writer: checkpoint.Writer) -> Iterator[None]:
    """Turns what ends a run into a line that says what is saved and how to go on."""
    try:
        yield
    except checkpoint.CheckpointError:
        raise
    except files.ResultsError as error:
        raise files.ResultsError(
            f"{error}; {_kept(writer)}; once it can be written go on with --resume"
        ) from error
    except (jax.errors.JaxRuntimeError, MemoryError, ValueError) as error:
        # From its second call on, a program's faults come as ValueError, with a status
        # in front (jax-ml/jax issue 34083).
        if isinstance(error, ValueError) and not _STATUS.match(str(error)):
            raise
        text = str(error).strip().splitlines()
        reason = text[-1] if text else type(error).__name__
        if isinstance(error, MemoryError) or "RESOURCE_EXHAUSTED" in str(error):
            raise RunError(
                f"out of memory ({reason}); {_kept(writer)}; set a smaller "
                "--seed_chunk and --resume",
                6,
            ) from error
        raise RunError(
            f"the environment or a program failed ({reason}); {_kept(writer)}; --debug "
            "shows more; go on with --resume",
            3,
        ) from error
    finally:
        writer.wait()  # nobody may write once the lock is gone


def _kept(writer: checkpoint.Writer) -> str:
    """What is on the disk when nothing is being saved any more."""
    writer.wait()
    if writer.saved is None:
        return "nothing is saved yet"
    return f"saved at step {writer.saved}"


def _say_nothing(_: str) -> None:
    """What a process says whose words another one says as well."""
