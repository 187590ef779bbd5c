"""Runs on disk, in one process: chunks, jobs, checkpoints, and going on."""

import numpy as np
import pytest
import session_cases
from session_cases import (
    CONFIG,
    ENV,
    LAST,
    RUN,
    SEEDS,
    STEPS,
    assert_close,
    assert_same,
    assert_same_states,
    job,
    last_states,
    table,
    train,
)

from vagram_jax.run import devices, runner, session
from vagram_jax.storage import checkpoint, files, lock


@pytest.fixture(scope="module", autouse=True)
def programs_once():
    """Each program is compiled once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "compiled", session_cases.compiled_once)
        yield


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


def test_runs_are_locked_until_they_are_given_back(tmp_path):
    folders = [tmp_path / "new" / name for name in ("one", "two")]
    with session.owning(folders):
        assert [lock.is_held(folder) for folder in folders] == [True, True]
        with (
            pytest.raises(lock.LockedError, match="two"),
            session.owning([tmp_path / "three", folders[1]]),
        ):
            pass
        # The one that was refused along with it has left nothing.
        assert not (tmp_path / "three").exists()
        (folders[0] / "metrics.csv").write_text("")
    assert [folder.exists() for folder in folders] == [True, False]
    assert not lock.is_held(folders[0])


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
    timing = tmp_path / "timing.csv"
    timing.write_text(timing.read_text().rpartition(",")[0] + ",1000.0\n")
    told = train(tmp_path, resume=True)
    assert told[0].endswith("going on from step 14")
    assert told[1].startswith(f"{tmp_path.name}: step 17 of 20")
    assert_same(tmp_path, whole)
    # The clock goes on too.
    seconds = [row["wall_time_s"] for row in files.read_rows(timing)]
    assert all(1000 < later < 1100 for later in seconds[3:])


def damage(folder, step):
    """Flips a bit in the arrays of a checkpoint."""
    (path,) = (folder / f"checkpoints/{step:09d}").glob("seeds-*/arrays.npz")
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


@pytest.mark.slow
def test_one_after_the_other_each_seed_has_its_bits_in_any_company(tmp_path, whole):
    run = RUN.replace(total_steps=14)
    train(tmp_path / "four", run=run, mode="serial")
    rows, last = table(tmp_path / "four"), last_states(tmp_path / "four", step=14)
    for first in (0, 2):
        folder, pair = tmp_path / f"pair_{first}", range(first, first + 2)
        train(folder, run=run.replace(num_seeds=2, first_seed=first), mode="serial")
        assert table(folder) == rows[3 * first :][:6]
        found = last_states(folder, pair, 14)
        assert_same_states(found, {name: last[name][list(pair)] for name in last})
    train(tmp_path / "one", run=run.replace(num_seeds=1), mode="serial")
    assert table(tmp_path / "one") == rows[:3]
    assert_same_states(
        last_states(tmp_path / "one", [0], 14), {name: last[name][:1] for name in last}
    )
    assert_close(rows, [row for row in table(whole) if row["env_steps"] <= 14])


def test_where_all_seeds_have_diverged_nothing_is_computed_any_more(
    tmp_path, monkeypatch
):
    strict = CONFIG.replace(divergence_slack=1e-9)
    programs = session_cases.compiled_once(RUN, ENV, devices.Layout())

    def learn_policy(*args):
        calls.append(args)
        return programs.learn_policy(*args)

    calls, learn_policy.lower = [], programs.learn_policy.lower
    counted = programs._replace(learn_policy=learn_policy)
    monkeypatch.setattr(runner, "compiled", lambda *_: counted)
    told = train(job(tmp_path / "whole", strict))
    assert len(calls) == 1
    assert f"{SEEDS} diverged" in told[-1]
    rows = table(tmp_path / "whole")
    assert [row["env_steps"] for row in rows] == STEPS * SEEDS
    assert [row["diverged_at"] for row in rows] == [None, *[STEPS[1]] * 4] * SEEDS
    assert [np.isnan(row["return"]) for row in rows] == [False, *[True] * 4] * SEEDS
    assert checkpoint.steps(tmp_path / "whole") == STEPS[-2:]
    train(job(tmp_path / "killed", strict), killed_at=4)
    assert len(calls) == 2
    train(job(tmp_path / "killed", strict), resume=True)
    assert len(calls) == 2
    assert_same(tmp_path / "killed", tmp_path / "whole")
