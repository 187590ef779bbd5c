"""What ends a run, what it says then, and that it goes on as if nothing was."""

import errno
import time

import jax
import pytest
import session_cases
from session_cases import ENV, RUN, SIMULATOR, STEPS, assert_same, train

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
    train(folder)
    return folder


def faulty(folder, match, fault=session.RunError, **settings):
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


NO_MEMORY = [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: of 3.2G"), MemoryError()]


@pytest.mark.parametrize("error", NO_MEMORY, ids=repr)
def test_an_epoch_that_wants_more_memory_is_told_with_a_remedy(
    tmp_path, whole, monkeypatch, error
):
    programs = runner.compiled(RUN, ENV, devices.Layout())

    def learn_policy(*args):
        calls.append(args)
        if len(calls) == 3:
            raise error
        return programs.learn_policy(*args)

    calls, learn_policy.lower = [], programs.learn_policy.lower
    with monkeypatch.context() as patch:
        faulty_one = programs._replace(learn_policy=learn_policy)
        patch.setattr(runner, "compiled", lambda *_: faulty_one)
        reason = "3.2G" if str(error) else "MemoryError"
        fault = faulty(tmp_path, f"out of memory.*{reason}.*saved at step 14; ")
    assert fault.status == 6
    assert "set a smaller --seed_chunk and --resume" in str(fault)
    train(tmp_path, resume=True)
    assert_same(tmp_path, whole)


def refuse_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_ends_a_run_that_can_go_on(tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        after(6, patch, files, "_write_or_undo", refuse_disk)
        said = r"metrics\.csv: No space left.*; saved at step 11; .*--resume"
        error = faulty(tmp_path, said, files.ResultsError)
    assert not isinstance(error, session.RunError)
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
        faulty(
            tmp_path, "seeds-0-3: No space left.*saved at step 17", files.ResultsError
        )
    assert checkpoint.steps(tmp_path) == STEPS[2:4]
    train(tmp_path, resume=True)
    assert_same(tmp_path, whole)


def test_nobody_writes_after_the_lock_is_gone(tmp_path, monkeypatch):
    """Not even the save in the background of a run that a fault has ended."""
    held, save = [], checkpoint.save

    def slow(*args):
        time.sleep(0.5)
        save(*args)
        held.append(lock.is_held(tmp_path))

    monkeypatch.setattr(checkpoint, "save", slow)
    after(4, monkeypatch, files, "_write_or_undo", refuse_disk)
    faulty(tmp_path, r"metrics\.csv", files.ResultsError)
    assert held == [True]
