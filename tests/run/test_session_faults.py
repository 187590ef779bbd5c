"""Failures of training: the message, the exit status, and resuming afterwards."""

import errno
import time

import jax
import log_cases
import numpy as np
import pytest
import session_cases as cases
from session_cases import STEPS, programs_once, train, whole

from vagram_jax import envs
from vagram_jax.run import failures, logs, session, vectorized
from vagram_jax.storage import checkpoint, files, lock

__all__ = ["programs_once", "whole"]
pytestmark = pytest.mark.usefixtures("programs_once")


class Simulated(cases.Line):
    """The task with a simulator outside JAX, which may fail."""

    fails: BaseException | None = None

    def step(self, state, action):
        """A step of the task after a call of the simulator."""
        zero = jax.pure_callback(
            self._simulate, jax.typeof(state.obs), state.obs, vmap_method="expand_dims"
        )
        return super().step(state.replace(obs=state.obs + zero), action)

    def _simulate(self, position):
        if Simulated.fails is not None:
            raise Simulated.fails
        return np.zeros_like(position)


SIMULATED = cases.spec(env_config=envs.EnvConfig(env=f"{__name__}:Simulated"))


def faulty(root, match, *specs, fault=session.RunError, **options):
    """Trains up to an error and returns it. Its text is one line."""
    with pytest.raises(fault, match=match) as caught:
        train(root, *specs, **options)
    assert "\n" not in str(caught.value)
    folder = cases.folder_of(root)
    assert not lock.is_held(folder)
    reason = files.read_json(folder / failures.FAILURE)
    assert reason == {"reason": str(caught.value)}
    return caught.value


def after(count, monkeypatch, module, name, act):
    """Replaces the `count`-th and all later calls of a function."""
    original, calls = getattr(module, name), []

    def replaced(*args, **kwargs):
        calls.append(args)
        return (act if len(calls) >= count else original)(*args, **kwargs)

    monkeypatch.setattr(module, name, replaced)


def test_an_environment_that_fails_is_named_with_the_step_that_is_saved(
    tmp_path, monkeypatch, caplog
):
    no_license = ValueError("the simulator has no license\nand no key")

    def write_and_break(*args):
        lines = append(*args)
        monkeypatch.setattr(Simulated, "fails", no_license)
        return lines

    append = files.append_rows
    after(5, monkeypatch, files, "append_rows", write_and_break)  # of step 11
    match = (
        r"^\S*test_session_faults\.py:\d+ raised ValueError: the simulator has no "
        "license; saved at step 11; --debug shows the traceback; .*--resume$"
    )
    error = faulty(tmp_path, match, SIMULATED)
    assert error.status == 3
    monkeypatch.undo()
    monkeypatch.setattr(vectorized, "make_programs", cases.make_programs_once)
    monkeypatch.setattr(Simulated, "fails", SystemExit(0))
    match = r"test_session_faults\.py:\d+ raised SystemExit: 0; nothing is saved yet; "
    error = faulty(tmp_path / "at_once", match, SIMULATED)
    assert error.status == 3
    # JAX would print the traceback of the callback.
    assert not [each for each in caplog.records if "callback" in each.getMessage()]


NO_MEMORY = [jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: of 3.2G"), MemoryError()]


@pytest.mark.parametrize("error", NO_MEMORY, ids=repr)
def test_a_lack_of_memory_is_reported_with_a_remedy(
    tmp_path, whole, monkeypatch, error
):
    programs, calls = cases.programs(), []

    def improve_policy(*args):
        calls.append(args)
        if len(calls) == 4:  # the first call is traced
            raise error
        return programs.improve_policy(*args)

    improve_policy.lower = programs.improve_policy.lower
    with monkeypatch.context() as patch:
        short = programs._replace(improve_policy=improve_policy)
        patch.setattr(vectorized, "make_programs", lambda *_, **__: short)
        reason = "3.2G" if str(error) else "MemoryError"
        fault = faulty(tmp_path, f"out of memory.*{reason}.*saved at step 14; ")
    assert fault.status == 6
    assert "set a smaller --seed_chunk and continue with --resume" in str(fault)
    train(tmp_path, resume=True)
    cases.assert_same_run(tmp_path, whole)


def test_a_logger_that_fails_loses_neither_the_training_nor_its_rows(
    tmp_path, whole, monkeypatch
):
    name = "tensorboard"
    with monkeypatch.context() as patch:
        after(6, patch, logs._TensorBoard, "log", refuse_disk)
        lines = train(tmp_path, log=(name,))
    # While the run trains, and when its log is completed at the end.
    failure, again = (line for line in lines if line.startswith("log="))
    assert failure.startswith("log=tensorboard: OSError: [Errno 28] No space left on ")
    assert "; training goes on without it; --resume --log=tensorboard " in failure
    assert again == failure
    cases.assert_same_run(tmp_path, whole)
    folder = cases.folder_of(tmp_path)
    with pytest.raises(AssertionError):
        log_cases.assert_follows(folder, name, range(cases.SEEDS))
    assert train(tmp_path, resume=True, log=(name,)) == ["run: finished already"]
    log_cases.assert_follows(folder, name, range(cases.SEEDS))
    train(tmp_path, overwrite=True)
    assert not (folder / name).exists()


def refuse_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_run_that_a_full_disk_stopped_can_be_resumed(tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        after(6, patch, files, "_write_or_undo", refuse_disk)
        match = r"metrics\.csv: No space left.*; saved at step 11; .*--resume"
        error = faulty(tmp_path, match, fault=files.ResultsError)
    assert not isinstance(error, session.RunError)
    assert "run: resuming from step 11" in train(tmp_path, resume=True)
    cases.assert_same_run(tmp_path, whole)


def test_training_continues_after_a_checkpoint_that_failed(
    tmp_path, whole, monkeypatch
):
    calls, write = [], checkpoint._write_arrays

    def sometimes(*args):
        calls.append(args)
        return refuse_disk() if len(calls) in (2, 3) else write(*args)

    monkeypatch.setattr(checkpoint, "_write_arrays", sometimes)
    lines = train(tmp_path)
    failed = [line.split(":")[0] for line in lines if "No space left" in line]
    assert failed == [f"no checkpoint at step {step}" for step in (11, 14)]
    cases.assert_same_run(tmp_path, whole)


def test_a_run_without_its_last_checkpoint_is_unfinished(tmp_path, whole, monkeypatch):
    with monkeypatch.context() as patch:
        after(5, patch, checkpoint, "_write_arrays", refuse_disk)
        match = "seeds-0-1: No space left.*saved at step 17"
        faulty(tmp_path, match, fault=files.ResultsError)
    folder = cases.folder_of(tmp_path)
    assert checkpoint.steps(folder) == STEPS[2:4]
    assert not (folder / "summary.json").exists()
    train(tmp_path, resume=True)
    cases.assert_same_run(tmp_path, whole)


def test_nothing_is_saved_in_the_background_after_the_lock_is_released(
    tmp_path, monkeypatch
):
    held, save, folder = [], checkpoint.save, cases.folder_of(tmp_path)

    def slow(*args):
        time.sleep(0.5)
        save(*args)
        held.append(lock.is_held(folder))

    monkeypatch.setattr(checkpoint, "save", slow)
    after(4, monkeypatch, files, "_write_or_undo", refuse_disk)
    faulty(tmp_path, r"metrics\.csv", fault=files.ResultsError)
    assert held == [True]
