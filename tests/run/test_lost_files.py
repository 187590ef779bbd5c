"""Resuming a run of which something was lost: rows, checkpoints, record or lock."""

import shutil
import socket

import pytest
import session_cases as cases
from session_cases import CONFIG, LAST, STEPS, programs_once, train, whole

from vagram_jax.run import devices, recorder, session
from vagram_jax.storage import checkpoint, files, lock, records

__all__ = ["programs_once", "whole"]
pytestmark = pytest.mark.usefixtures("programs_once")


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, programs_once):
    """A run that was stopped at step 17, with checkpoints at 11 and 14."""
    root = tmp_path_factory.mktemp("stopped")
    train(root, killed_at=4)
    return root


@pytest.fixture
def root(stopped, tmp_path):
    """A copy of the stopped run."""
    return shutil.copytree(stopped, tmp_path / "root")


def edit(path, change):
    """Changes the lines of a file."""
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


# Rows: the seeds 0 and 1 have lines 1 and 2 of step 8, 3 and 4 of step 11, and so on.
LOSSES = {
    "half of a line of step 14": lambda lines: [*lines[:6], lines[6][:20]],
    "a line of step 14": lambda lines: [*lines[:5], *lines[6:]],
    "the lines from step 14 on": lambda lines: lines[:5],
    "a changed digit of step 14": lambda lines: [
        *lines[:6],
        lines[6].replace("1", "2"),
        *lines[7:],
    ],
}


@pytest.mark.parametrize("loss", LOSSES)
def test_a_checkpoint_whose_rows_are_lost_is_not_used(root, whole, loss):
    edit(cases.folder_of(root) / "metrics.csv", LOSSES[loss])
    with pytest.raises(files.ResultsError, match=r"metrics\.csv.* leave out --strict"):
        train(root, resume=True, strict=True)
    lines = train(root, resume=True)
    assert any("metrics.csv" in x and "earlier checkpoint" in x for x in lines)
    assert "run: resuming from step 11" in lines
    cases.assert_same_run(root, whole)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize(
    "lose", [lambda path: path.unlink(), lambda path: path.write_text("")]
)
def test_a_run_without_the_rows_of_any_checkpoint_is_refused(root, lose, strict):
    folder = cases.folder_of(root)
    lose(folder / "metrics.csv")
    before = checkpoint.steps(folder), (folder / "timing.csv").read_bytes()
    message = r"metrics\.csv: has 0 of 6 rows up to step 14; .*--(overwrite|strict)"
    with pytest.raises(files.ResultsError, match=message):
        train(root, resume=True, strict=strict)
    assert (checkpoint.steps(folder), (folder / "timing.csv").read_bytes()) == before


def test_a_finished_run_that_lost_a_row_is_not_taken_for_finished(tmp_path, whole):
    root = shutil.copytree(whole, tmp_path / "root")
    edit(cases.folder_of(root) / "metrics.csv", lambda lines: lines[:-1])
    lines = train(root, resume=True)
    assert "run: resuming from step 17" in lines
    cases.assert_same_run(root, whole)


def test_a_finished_run_loses_the_lock_of_a_process_that_was_killed_at_its_end(
    tmp_path, whole
):
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    owner = {"host": socket.gethostname(), "pid": 4711, "started": "then"}
    files.write_json(cases.folder_of(tmp_path) / lock.NAME, owner)
    # `train` checks that no lock is left.
    assert train(tmp_path, resume=True) == ["run: finished already"]


def test_a_run_without_a_usable_checkpoint_says_so_and_keeps_its_tables(root, whole):
    folder = cases.folder_of(root)
    table = (folder / "metrics.csv").read_bytes()
    (folder / "metrics.csv.1").write_text("from before")
    shutil.rmtree(folder / "checkpoints")
    with pytest.raises(checkpoint.CheckpointError, match=r"no usable .* --strict"):
        train(root, resume=True, strict=True)
    assert (folder / "metrics.csv").read_bytes() == table
    lines = train(root, resume=True)
    (line,) = (x for x in lines if "no usable checkpoint" in x)
    assert "rows up to step 17; starting at step 0; the old tables are kept" in line
    assert line.endswith("metrics.csv.2, timing.csv.1")
    assert (folder / "metrics.csv.1").read_text() == "from before"
    assert (folder / "metrics.csv.2").read_bytes() == table
    cases.assert_same_run(root, whole)


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(
    tmp_path, whole, monkeypatch
):
    def kill(*_):
        raise cases.Killed

    with monkeypatch.context() as patch:
        patch.setattr(recorder.Recorder, "save", kill)
        train(tmp_path, killed_at="the first checkpoint")
    assert files.read_rows(cases.folder_of(tmp_path) / "metrics.csv")
    lines = train(tmp_path, resume=True, strict=True)
    text = "run: no usable checkpoint of seeds 0 to 1; starting at step 0"
    assert text in lines
    assert not list(cases.folder_of(tmp_path).glob("*.1"))
    cases.assert_same_run(tmp_path, whole)


# Settings.

OTHER = cases.spec(config=CONFIG.replace(divergence_slack=7.0))


def test_a_run_without_its_record_is_resumed_with_the_same_settings_only(root, whole):
    folder = cases.folder_of(root)
    (folder / "config.json").unlink()
    before = sorted(folder.rglob("*"))
    with pytest.raises(
        ValueError, match=r"other settings: divergence_slack was .* 7\.0"
    ):
        train(root, OTHER, resume=True)
    assert sorted(folder.rglob("*")) == before
    train(root, resume=True)
    cases.assert_same_run(root, whole)
    assert records.read(folder)["config"] == files.as_json(cases.spec().settings)


def test_a_checkpoint_of_other_settings_is_refused_whatever_the_record_says(root):
    path = cases.folder_of(root) / "config.json"
    record = records.read(path.parent)
    files.write_json(path, record | {"config": files.as_json(OTHER.settings)})
    with pytest.raises(ValueError, match="other settings: divergence_slack"):
        train(root, OTHER, resume=True)


def test_a_checkpoint_names_settings_and_rows(whole):
    (notes,) = checkpoint.notes(cases.folder_of(whole), LAST)
    assert notes["settings"] == files.as_json(cases.spec().settings)
    assert notes["tables"]["seeds"] == [0, 1]
    assert notes["tables"]["metrics.csv"][0] == 2 * len(STEPS)
    assert notes["tables"]["model.csv"][0] == 0  # plain SAC fits no model


def test_a_record_names_what_else_decides_numbers(whole, monkeypatch):
    numerics = records.read(cases.folder_of(whole))["numerics"]
    assert numerics["x64"] is False
    assert numerics["prng"] == "threefry2x32"
    assert numerics["threefry_partitionable"] in (True, False)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=/home/me/dump --xla_y=1")
    assert session._numerics()["xla_flags"] == "--xla_dump_to=dump --xla_y=1"


def test_what_was_refused_for_lack_of_memory_does_not_block_the_corrected_command(
    tmp_path, whole, monkeypatch
):
    def refuse(*_, **__):
        raise devices.DeviceError("2 seeds need 3.2 GB; set --seed_chunk=1")

    lines, options = [], session.SessionOptions(layout=devices.Layout("vmap"))
    with monkeypatch.context() as patch:
        patch.setattr(devices, "check_memory", refuse)
        with pytest.raises(devices.DeviceError):
            session.train_runs(
                [OTHER], tmp_path, cases.STUDY, options=options, report=lines.append
            )
    folder = cases.folder_of(tmp_path)
    # The return of the warm-up is printed before the programs of an epoch are compiled,
    # but nothing of it is written that would refuse another command.
    assert lines[-1].startswith("run: step 8 of 20, return ")
    assert not (folder / "metrics.csv").exists()
    assert "need 3.2 GB" in files.read_json(folder / "failure.json")["reason"]
    train(tmp_path)
    assert not (folder / "failure.json").exists()
    cases.assert_same_run(tmp_path, whole)


# The lock.


@pytest.mark.parametrize("takes_over", [False, True])
def test_a_run_whose_lock_was_removed_writes_nothing_more(
    tmp_path, monkeypatch, takes_over
):
    folder, append = cases.folder_of(tmp_path), files.append_rows

    def append_and_remove(path, rows):
        lines = append(path, rows)
        if path.name == "metrics.csv" and rows[0]["env_steps"] == STEPS[1]:
            (folder / lock.NAME).unlink()
            if takes_over:
                other = {"host": "far-away", "pid": 7, "started": "now"}
                files.write_json(folder / lock.NAME, other)
        return lines

    monkeypatch.setattr(files, "append_rows", append_and_remove)
    with pytest.raises(lock.LockedError, match="far-away" if takes_over else "removed"):
        session.train_runs(
            [cases.spec()],
            tmp_path,
            cases.STUDY,
            options=session.SessionOptions(layout=cases.LAYOUT),
        )
    rows = files.read_rows(folder / "metrics.csv")
    assert {row["env_steps"] for row in rows} == set(STEPS[:2])
    assert checkpoint.steps(folder) == STEPS[:1]
    assert not (folder / "failure.json").exists()
    assert (folder / lock.NAME).exists() == takes_over
