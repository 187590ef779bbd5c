"""Runs on disk, in one process: chunks, jobs, faults, and going on after them."""

import errno

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vagram_jax import (
    checkpoint,
    devices,
    envs,
    files,
    lock,
    mbpo,
    runner,
    sac,
    session,
)

FIRST, EPOCH, LAST = 8, 3, 20
STEPS = list(range(FIRST, LAST + 1, EPOCH))
SEEDS = 4
RUN = runner.RunConfig(num_seeds=SEEDS, total_steps=LAST, eval_episodes=1)
# Plain SAC without hidden layers compiles fastest; what is tested is around it.
CONFIG = mbpo.MBPOConfig(
    loss=mbpo.NO_MODEL,
    sac=sac.SACConfig(hidden=()),
    batch_size=4,
    updates_per_step=1,
    steps_per_epoch=EPOCH,
    warmup_steps=FIRST,
    real_fraction=(1.0,),
    replay_capacity=20,
)


class Simulator:
    """Something outside JAX that every step asks, and that may fail."""

    broken = False

    def __call__(self, position):
        if self.broken:
            raise ValueError("the simulator has no licence")
        return np.zeros_like(position)


SIMULATOR = Simulator()


class Line:
    """A point that is pushed along a line."""

    observation_size, action_size, episode_length = 1, 1, 3

    def reset(self, key):
        """Anywhere near the middle."""
        return self._state(jax.random.uniform(key, (1,)))

    def step(self, state, action):
        """A push, and nothing from the simulator."""
        noise = jax.pure_callback(
            SIMULATOR, jax.typeof(state.obs), state.obs, vmap_method="broadcast_all"
        )
        return self._state(state.obs + 0.1 * action + noise)

    def _state(self, obs):
        return envs.State(
            pipeline_state=(),
            obs=obs,
            reward=-jnp.sum(jnp.square(obs)),
            done=jnp.zeros(()),
            metrics={},
            info={},
        )


ENV = Line()


@pytest.fixture(scope="module", autouse=True)
def programs_once():
    """Compiles each program once for all tests."""
    known, original = {}, runner.compiled

    def compiled(run, env, layout):
        key = (run.eval_episodes, type(env), layout.mode)
        if key not in known:
            known[key] = original(run, env, layout)
        return known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "compiled", compiled)
        yield


class Killed(BaseException):
    """Ends a run like a kill does, but for the lock."""


def job(folder, config=CONFIG):
    folder.mkdir(exist_ok=True)
    return session.Job(folder, "Line", config)


def train(*jobs, run=RUN, killed_at=None, mode="vmap", **keeping):
    """Trains; gives what was told. `killed_at`: dies after so many evaluations."""
    told = []

    def tell(line):
        told.append(line)
        if sum(": step " in line for line in told) == killed_at:
            raise Killed

    keeping = session.Keeping(layout=devices.Layout(mode), **keeping)
    jobs = [job if isinstance(job, session.Job) else _job(job) for job in jobs]
    try:
        session.train_to_files(run, jobs, ENV, keeping=keeping, tell=tell)
        assert killed_at is None
    except Killed:
        pass
    for folder in {job.folder for job in jobs}:
        assert not (folder / lock.NAME).exists()
        assert not list(folder.rglob("*.tmp"))
    return told


def _job(folder):
    return job(folder)


def table(folder):
    """The rows of metrics.csv, in the order of seeds and steps."""
    rows = files.read_rows(folder / "metrics.csv")
    return sorted(rows, key=lambda row: (row["seed"], row["env_steps"]))


def last_states(folder, seeds=range(SEEDS), step=LAST):
    return checkpoint.load(folder, step, seeds)


def assert_same(found, wanted):
    """Table and last states of all seeds, to the bit."""
    names = [(folder / "metrics.csv").read_bytes() for folder in (found, wanted)]
    assert names[0] == names[1]
    assert_same_states(last_states(found), last_states(wanted))


def assert_same_states(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def assert_close(found, wanted):
    """Rows that other programs made of the same seeds."""
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            wanted_value = pytest.approx(value, rel=1e-3, abs=1e-4)
            assert one[name] == (value if isinstance(value, str) else wanted_value)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("session") / "whole"
    told = train(folder)
    assert [line.split(",")[0] for line in told] == [
        f"whole: step {step} of {LAST}" for step in STEPS
    ]
    return folder


def test_a_run_leaves_rows_of_all_seeds_and_its_last_checkpoints(whole):
    rows = [(row["seed"], row["env_steps"]) for row in table(whole)]
    assert rows == [(seed, step) for seed in range(SEEDS) for step in STEPS]
    assert checkpoint.steps(whole) == STEPS[-checkpoint.KEPT :]
    seconds = [row["wall_time_s"] for row in files.read_rows(whole / "timing.csv")]
    assert len(seconds) == len(STEPS)
    assert seconds == sorted(seconds)
    assert {path.name for path in whole.iterdir()} == {
        "metrics.csv",
        "timing.csv",
        "checkpoints",
    }


def test_a_run_is_locked_while_it_trains(tmp_path, whole):
    held = []

    def tell(_):
        held.append(lock.is_held(tmp_path))
        with pytest.raises(lock.LockedError):
            session.train_to_files(RUN, [job(tmp_path)], ENV, keeping=session.Keeping())

    session.train_to_files(
        RUN, [job(tmp_path)], ENV, keeping=session.Keeping(), tell=tell
    )
    assert held == [True] * len(STEPS)
    assert not lock.is_held(tmp_path)
    assert_same(tmp_path, whole)


def test_a_run_that_has_ended_is_left_as_it_is(tmp_path, whole):
    train(tmp_path)
    assert train(tmp_path, resume=True) == [f"{tmp_path.name}: going on from step 20"]
    # Not even a run that should have ended earlier is cut.
    train(tmp_path, resume=True, run=RUN.replace(total_steps=STEPS[-2]))
    assert_same(tmp_path, whole)


def test_without_resume_a_run_starts_anew(tmp_path, whole):
    train(tmp_path)
    train(tmp_path, killed_at=2)
    assert {row["env_steps"] for row in table(tmp_path)} == set(STEPS[:2])
    assert checkpoint.steps(tmp_path) == STEPS[:1]
    train(tmp_path, resume=True)
    assert_same(tmp_path, whole)


@pytest.mark.parametrize("killed_at", [1, 2, 4])
def test_a_killed_run_goes_on_to_the_same_bytes(tmp_path, whole, killed_at):
    train(tmp_path, killed_at=killed_at)
    told = train(tmp_path, resume=True)
    # Rows are written before the checkpoint: the last ones were made again.
    if killed_at > 1:
        step = STEPS[killed_at - 2]
        assert told[0] == f"{tmp_path.name}: going on from step {step}"
    assert len(told) == (len(STEPS) - killed_at + 1) + (killed_at > 1)
    assert_same(tmp_path, whole)


@pytest.mark.parametrize(
    ("every", "wanted"), [(0, [20]), (1, STEPS), (2, [8, 14, 20]), (3, [8, 17, 20])]
)
def test_checkpoints_are_saved_as_often_as_asked(
    tmp_path, whole, monkeypatch, every, wanted
):
    saved, save = [], checkpoint.save

    def spy(piece, step):
        saved.append(step)
        save(piece, step)

    monkeypatch.setattr(checkpoint, "save", spy)
    train(tmp_path, checkpoint_every=every)
    assert saved == wanted
    assert_same(tmp_path, whole)


def test_a_run_that_is_made_longer_equals_a_long_run(tmp_path, whole):
    train(tmp_path, run=RUN.replace(total_steps=14))
    told = train(tmp_path, resume=True)
    assert told[0].endswith("going on from step 14")
    assert told[1].startswith(f"{tmp_path.name}: step 17 of 20")
    assert_same(tmp_path, whole)
    seconds = [row["wall_time_s"] for row in files.read_rows(tmp_path / "timing.csv")]
    assert seconds == sorted(seconds)


def damage(folder, step):
    """Flips a bit in the first file of a checkpoint."""
    places = (folder / f"checkpoints/{step:09d}").glob("seeds-*/arrays/*")
    path = min(path for path in places if path.is_file() and path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def test_a_damaged_checkpoint_costs_an_epoch_and_no_bit(tmp_path, whole):
    train(tmp_path)
    damage(tmp_path, LAST)
    with pytest.raises(checkpoint.CheckpointError, match="--strict"):
        train(tmp_path, resume=True, strict=True)
    told = train(tmp_path, resume=True)
    assert "going back to the checkpoint before" in told[0]
    assert told[1].endswith("going on from step 17")
    assert_same(tmp_path, whole)
    assert checkpoint.newest([(tmp_path, range(SEEDS))], tell=told.append) == LAST


def test_with_all_checkpoints_damaged_a_run_starts_anew(tmp_path, whole):
    train(tmp_path)
    for step in checkpoint.steps(tmp_path):
        damage(tmp_path, step)
    told = train(tmp_path, resume=True, killed_at=3)
    assert sum("going back" in line for line in told) == 2
    # The damaged ones are later, but what comes now is not old for that.
    assert checkpoint.steps(tmp_path) == STEPS[:2]
    told = train(tmp_path, resume=True)
    assert told[0].endswith(f"going on from step {STEPS[1]}")
    assert_same(tmp_path, whole)


def test_chunks_have_the_rows_of_all_seeds_at_once(tmp_path, whole):
    train(tmp_path, seed_chunk=2)
    assert_close(table(tmp_path), table(whole))
    firsts = [row["seed"] for row in files.read_rows(tmp_path / "timing.csv")]
    assert firsts == [0] * len(STEPS) + [2] * len(STEPS)


def test_a_run_killed_in_its_second_chunk_goes_on_there(tmp_path):
    train(tmp_path / "whole", seed_chunk=2)
    found = tmp_path / "killed"
    train(found, seed_chunk=2, killed_at=len(STEPS) + 3)
    told = train(found, seed_chunk=2, resume=True)
    assert told[:2] == [f"killed: going on from step {step}" for step in (20, 11)]
    assert told[2].startswith("killed: step 14 of 20")
    assert_same(found, tmp_path / "whole")


def test_a_run_goes_on_in_other_chunks(tmp_path, whole):
    train(tmp_path, killed_at=4)
    told = train(tmp_path, seed_chunk=2, resume=True)
    assert sum("going on from step 14" in line for line in told) == 2
    assert_close(table(tmp_path), table(whole))
    # What both chunks shared goes when the second one is done with it.
    assert checkpoint.steps(tmp_path) == STEPS[-2:]


def test_jobs_side_by_side_equal_each_alone(tmp_path):
    run = RUN.replace(num_seeds=2)
    configs = {
        f"rate_{rate}": CONFIG.replace(sac=CONFIG.sac.replace(actor_learning_rate=rate))
        for rate in (1e-3, 1e-1)
    }
    (tmp_path / "both").mkdir()
    together = [job(tmp_path / "both" / name, configs[name]) for name in configs]
    train(*together, run=run, killed_at=2 * 2 + 1)
    train(*together, run=run, resume=True)
    tables = []
    for name, config in configs.items():
        train(job(tmp_path / name, config), run=run)
        tables.append(table(tmp_path / name))
        assert_close(table(tmp_path / "both" / name), tables[-1])
    last = [rows[-1]["sac/actor_loss"] for rows in tables]
    assert last[0] != pytest.approx(last[1], rel=0.01)


def test_a_seed_does_not_depend_on_its_neighbours(tmp_path, whole):
    run = RUN.replace(first_seed=2)
    train(tmp_path, run=run)
    both = range(2, SEEDS)
    assert_same_states(last_states(tmp_path, both), last_states(whole, both))
    assert table(tmp_path)[: 2 * len(STEPS)] == table(whole)[2 * len(STEPS) :]


def test_one_after_the_other_each_seed_is_as_if_alone(tmp_path, whole):
    run = RUN.replace(num_seeds=2, total_steps=14)
    train(tmp_path / "both", run=run, mode="serial")
    for seed in range(2):
        alone = run.replace(num_seeds=1, first_seed=seed)
        train(tmp_path / f"{seed}", run=alone, mode="serial")
        assert table(tmp_path / f"{seed}") == table(tmp_path / "both")[3 * seed :][:3]
        assert_same_states(
            last_states(tmp_path / "both", [seed], 14),
            last_states(tmp_path / f"{seed}", [seed], 14),
        )
    rows = [row for row in table(whole) if row["seed"] < 2 and row["env_steps"] <= 14]
    assert_close(table(tmp_path / "both"), rows)


def test_a_run_ends_when_all_seeds_have_diverged(tmp_path):
    strict = CONFIG.replace(divergence_slack=1e-9)
    told = train(job(tmp_path, strict))
    assert f"{SEEDS} diverged" in told[-1]
    rows = table(tmp_path)
    assert [row["env_steps"] for row in rows] == STEPS[:2] * SEEDS
    assert {row["diverged_at"] for row in rows[1::2]} == {STEPS[1]}
    assert checkpoint.steps(tmp_path) == STEPS[:2]
    told = train(job(tmp_path, strict), resume=True)
    assert told == [f"{tmp_path.name}: going on from step {STEPS[1]}"]
    assert table(tmp_path)[1::2] == rows[1::2]


def faulty(folder, match, fault=session.RunFault, **settings):
    """Trains up to a fault; gives the error, whose text is one line."""
    with pytest.raises(fault, match=match) as caught:
        train(folder, **settings)
    assert "\n" not in str(caught.value)
    assert not lock.is_held(folder)
    assert files.read_json(folder / session.FAILURE) == {"reason": str(caught.value)}
    return caught.value


def after(count, monkeypatch, module, name, act):
    """Lets the `count`-th call of a function, and all later ones, do something else."""
    original, calls = getattr(module, name), []

    def replaced(*args, **kwargs):
        calls.append(args)
        return (act if len(calls) >= count else original)(*args, **kwargs)

    monkeypatch.setattr(module, name, replaced)


def test_an_environment_that_fails_is_named_with_what_is_saved(
    tmp_path, whole, monkeypatch
):
    with monkeypatch.context() as patch:

        def write_and_break(*args):
            append(*args)
            patch.setattr(SIMULATOR, "broken", True, raising=False)

        append = files.append_rows
        after(5, patch, files, "append_rows", write_and_break)  # of step 14
        error = faulty(tmp_path, "the simulator has no licence.*saved at step 14")
    assert error.status == 3
    assert "--resume" in str(error)
    told = train(tmp_path, resume=True)
    assert told[0].endswith("going on from step 14")
    assert_same(tmp_path, whole)


def test_an_environment_that_fails_at_once_has_saved_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(SIMULATOR, "broken", True, raising=False)
    error = faulty(tmp_path, "no licence.*nothing is saved yet")
    assert error.status == 3


def test_want_of_memory_is_told_with_a_remedy(tmp_path, whole, monkeypatch):
    def exhaust(*_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory: 3.2G")

    with monkeypatch.context() as patch:
        after(3, patch, checkpoint, "pack", exhaust)
        error = faulty(
            tmp_path, r"out of memory.*3\.2G.*saved at step 11; .*seed_chunk"
        )
    assert error.status == 6
    train(tmp_path, resume=True)
    assert_same(tmp_path, whole)


class OutOfMemory:
    """The programs of a run whose epoch wants more than there is."""

    def __init__(self, programs):
        self.start, self.evaluate = programs.start, programs.evaluate
        self.lower = programs.epoch.lower

    def epoch(self, *_):
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory")


@pytest.mark.parametrize("error", [jax.errors.JaxRuntimeError, MemoryError])
def test_an_epoch_that_wants_more_memory_ends_with_its_status(
    tmp_path, monkeypatch, error
):
    programs = runner.compiled(RUN, ENV, devices.Layout())

    def epoch(*_):
        raise error(
            "RESOURCE_EXHAUSTED: Out of memory" if error is not MemoryError else ""
        )

    epoch.lower = programs.epoch.lower
    monkeypatch.setattr(runner, "compiled", lambda *_: programs._replace(epoch=epoch))
    assert faulty(tmp_path, r"out of memory.*saved at step 8; .*seed_chunk").status == 6


def refuse_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_a_run_that_can_go_on(tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        after(6, patch, files, "_write_or_undo", refuse_disk)
        error = faulty(tmp_path, r"metrics\.csv: No space left", files.ResultsError)
    assert not isinstance(error, session.RunFault)
    told = train(tmp_path, resume=True)
    assert told[0].endswith("going on from step 11")
    assert_same(tmp_path, whole)


def test_a_checkpoint_that_fails_ends_no_run(tmp_path, whole, monkeypatch):
    calls, write = [], checkpoint._write_arrays

    def sometimes(*args):
        calls.append(args)
        return refuse_disk() if len(calls) in (2, 3) else write(*args)

    monkeypatch.setattr(checkpoint, "_write_arrays", sometimes)
    told = train(tmp_path)
    failed = [line.split(":")[0] for line in told if "No space left" in line]
    assert failed == [f"no checkpoint at step {step}" for step in (11, 14)]
    assert_same(tmp_path, whole)


def test_a_run_without_its_last_checkpoint_has_not_ended(tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        after(5, patch, checkpoint, "_write_arrays", refuse_disk)
        faulty(tmp_path, "seeds-0-3: No space left", files.ResultsError)
    assert checkpoint.steps(tmp_path) == STEPS[2:4]
    train(tmp_path, resume=True)
    assert_same(tmp_path, whole)


def test_nobody_writes_after_the_lock_is_gone(tmp_path, monkeypatch):
    """Not even the save in the background of a run that a fault has ended."""
    held, save = [], checkpoint.save

    def slow(*args):
        save(*args)
        held.append(lock.is_held(tmp_path))

    monkeypatch.setattr(checkpoint, "save", slow)
    after(4, monkeypatch, files, "_write_or_undo", refuse_disk)
    faulty(tmp_path, r"metrics\.csv", files.ResultsError)
    assert held == [True]
