"""Checkpoints come and go: pruning, saving in the background, and full disks."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from test_checkpoint import newest, place, small, temporary

from vagram_jax.storage import checkpoint, files
from vagram_jax.storage.checkpoint import Piece, Writer

ROOT = Path(__file__).parents[2]


@pytest.fixture
def run(tmp_path):
    """A run with two steps."""
    for step in (5, 8):
        small(tmp_path, step, range(2))
    return tmp_path


@pytest.mark.parametrize(
    "call", ["os.rename", "files.sync", "files.write_json", "_write_arrays"]
)
def test_a_save_that_fails_leaves_no_trace(run, monkeypatch, call):
    def fail(*_):
        raise OSError(28, "No space left on device")

    before = sorted(run.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(f"vagram_jax.storage.checkpoint.{call}", fail)
        with pytest.raises(files.ResultsError, match="seeds-0-1: No space left"):
            small(run, 11, range(2))
    after = set(run.rglob("*")) - {run / "checkpoints/000000011"}
    assert sorted(after) == before
    assert newest(run, range(2)) == (8, [])
    assert checkpoint.load(run, 8, [1])["x"].tolist() == [[8, 1]]


def steps_of(run, seed):
    return [s for s in checkpoint.steps(run) if seed in checkpoint._pieces(run)[s]]


def test_pruning_keeps_the_last_steps_and_other_seeds(tmp_path):
    for step in (5, 8, 11, 14):
        small(tmp_path, step, range(2))
    for step in (5, 8, 11):
        small(tmp_path, step, range(2, 4))
    checkpoint.prune(tmp_path, range(2))
    assert steps_of(tmp_path, 0) == steps_of(tmp_path, 1) == [11, 14]
    assert steps_of(tmp_path, 2) == steps_of(tmp_path, 3) == [5, 8, 11]
    checkpoint.prune(tmp_path, range(2, 4))
    assert steps_of(tmp_path, 2) == [8, 11]
    # A folder goes with its last piece.
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"000000008", "000000011", "000000014"}
    assert newest(tmp_path, range(4)) == (11, [])
    assert not temporary(tmp_path)


def test_pruning_later_steps_keeps_the_others(tmp_path):
    for step in (5, 8, 11, 14):
        small(tmp_path, step, range(2))
        small(tmp_path, step, range(2, 4))
    checkpoint.prune(tmp_path, range(2), later_than=8)
    assert steps_of(tmp_path, 0) == [5, 8]
    assert steps_of(tmp_path, 2) == [5, 8, 11, 14]
    checkpoint.prune(tmp_path, range(2), later_than=-1)
    assert steps_of(tmp_path, 0) == []
    checkpoint.prune(tmp_path / "none", range(2))


def test_a_piece_stays_until_all_that_share_it_have_gone_on(tmp_path):
    """Saved by one process, resumed in two chunks."""
    for step in (5, 8):
        small(tmp_path, step, range(4))
    for step in (11, 14, 17):
        small(tmp_path, step, range(2))
        checkpoint.prune(tmp_path, range(2))
    assert steps_of(tmp_path, 0) == [5, 8, 14, 17]
    assert newest(tmp_path, range(2, 4)) == (8, [])
    small(tmp_path, 11, range(2, 4))
    checkpoint.prune(tmp_path, range(2, 4))
    assert steps_of(tmp_path, 3) == [8, 11]
    small(tmp_path, 14, range(2, 4))
    checkpoint.prune(tmp_path, range(2, 4))
    assert steps_of(tmp_path, 3) == [11, 14]
    assert checkpoint.load(tmp_path, 14, range(4))["x"].tolist() == [
        [14, seed] for seed in range(4)
    ]


def test_a_later_piece_that_is_shared_does_not_shadow_a_new_one(tmp_path):
    for step in (5, 8):
        small(tmp_path, step, range(4))
    (place(tmp_path, 8, range(4)) / "manifest.json").unlink()
    for seeds in (range(2), range(2, 4)):
        checkpoint.prune(tmp_path, seeds, later_than=5)
        small(tmp_path, 8, seeds)
    assert newest(tmp_path, range(4)) == (8, [])


def test_pruning_removes_what_a_killed_process_left(tmp_path):
    small(tmp_path, 5, range(2))
    folder = tmp_path / "checkpoints/000000005"
    for name in (".seeds-0-1.abc.tmp", ".seeds-1-1.def.tmp", ".seeds-2-3.abc.tmp"):
        (folder / name / "arrays").mkdir(parents=True)
    checkpoint.prune(tmp_path, range(2))
    # Another process may be writing the third one.
    assert {path.name for path in temporary(tmp_path)} == {".seeds-2-3.abc.tmp"}
    assert newest(tmp_path, range(2)) == (5, [])


def test_a_piece_that_cannot_be_removed_is_named(tmp_path, monkeypatch):
    small(tmp_path, 5, range(2))

    def refuse(*_):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(checkpoint.os, "rename", refuse)
    with pytest.raises(files.ResultsError, match="seeds-0-1: Permission denied"):
        checkpoint.prune(tmp_path, range(2), later_than=0)


def piece(run, step, seeds=range(2)):
    return Piece(run, seeds, {"x": np.full(len(seeds), step)})


def test_a_writer_saves_and_keeps_the_last_steps(tmp_path):
    told, writer = [], Writer(tell=None, saved=2)
    assert writer.saved == 2
    for step in (5, 8, 11, 14):
        writer.save([piece(tmp_path / "a", step), piece(tmp_path / "b", step)], step)
        writer.wait()
        assert writer.saved == step
    for name in "ab":
        # While one more is written, the last `KEPT` stay.
        assert checkpoint.steps(tmp_path / name) == [8, 11, 14]
    writer.close()
    for name in "ab":
        assert checkpoint.steps(tmp_path / name) == [11, 14]
        assert newest(tmp_path / name, range(2)) == (14, told)


def test_a_writer_saves_in_the_background_one_at_a_time(tmp_path, monkeypatch):
    go_on, original, running = threading.Event(), checkpoint.save, []

    def slow(*args):
        running.append(args[1])
        assert go_on.wait(20)
        original(*args)
        running.remove(args[1])

    monkeypatch.setattr(checkpoint, "save", slow)
    writer = Writer()
    writer.save([piece(tmp_path, 5)], 5)
    assert writer.saved is None
    threading.Timer(0.2, go_on.set).start()
    writer.save([piece(tmp_path, 8)], 8)
    # The first one had ended before the second began.
    assert 5 not in running
    assert writer.saved in (5, 8)
    writer.close()
    assert (writer.saved, checkpoint.steps(tmp_path)) == (8, [5, 8])


@pytest.mark.parametrize("fault", [OSError(28, "No space left"), KeyError("odd")])
def test_a_writer_tells_of_a_save_that_fails(tmp_path, monkeypatch, fault):
    def fail(*_):
        raise fault

    told = []
    writer = Writer(told.append)
    writer.save([piece(tmp_path, 5)], 5)
    writer.wait()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_arrays", fail)
        for step in (8, 11, 14):
            writer.save([piece(tmp_path, step)], step)
        writer.wait()
    assert len(told) == 3
    assert told[0].startswith("no checkpoint at step 8: ")
    assert told[0].endswith("; training goes on")
    # What is saved doesn't get old by what failed.
    assert (writer.saved, newest(tmp_path, range(2))) == (5, (5, []))
    with pytest.raises(files.ResultsError, match=r"No space left|odd"):
        writer.close()
    writer.save([piece(tmp_path, 17)], 17)
    writer.close()
    assert (writer.saved, newest(tmp_path, range(2))) == (17, (17, []))


FULL_DISK = """
import pathlib, resource, signal, sys
import numpy as np
from vagram_jax import checkpoint

run, writer = pathlib.Path(sys.argv[1]), checkpoint.Writer()
def save(step):
    data = np.random.default_rng(step).normal(size=(2, 50_000))
    writer.save([checkpoint.Piece(run, range(2), {"x": data})], step)
    writer.wait()
save(5)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, resource.RLIM_INFINITY))
save(8)
assert writer.saved == 5
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
save(11)
writer.close()
"""


def test_files_that_the_system_cuts_are_noticed_at_once(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", FULL_DISK, tmp_path],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=100,
    )
    assert process.returncode == 0, process.stderr
    (line,) = process.stdout.splitlines()
    assert line.startswith("no checkpoint at step 8: ")
    assert checkpoint.steps(tmp_path) == [5, 11]
    assert newest(tmp_path, range(2)) == (11, [])
    assert checkpoint.newest([(tmp_path, range(2))], at_most=10) == 5
    assert not temporary(tmp_path)


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(files.ResultsError) as caught:
        small(tmp_path, 5, range(2))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if os.geteuid():  # root may write everywhere
        (tmp_path / "read_only").mkdir(mode=0o500)
        with pytest.raises(files.ResultsError, match="Permission denied"):
            small(tmp_path / "read_only", 5, range(2))
