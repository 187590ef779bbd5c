"""Pruning, saving in the background, and full disks."""

import os
import resource
import signal
import threading

import numpy as np
import pytest
from storage_cases import newest, one_line, piece_folder, save, unfinished

from vagram_jax.storage import checkpoint, disk, files
from vagram_jax.storage.checkpoint import Piece, Writer

NO_SPACE = OSError(28, "No space left on device")


def fail_with(error):
    def fail(*_, **__):
        raise error

    return fail


@pytest.mark.parametrize(
    "call", ["disk.rename", "disk.sync", "files.write_json", "_write_arrays"]
)
def test_save_that_fails_leaves_no_trace(tmp_path, monkeypatch, call):
    save(tmp_path, 8, range(2))
    before = sorted(tmp_path.rglob("*"))
    with monkeypatch.context() as patch:
        patch.setattr(f"vagram_jax.storage.checkpoint.{call}", fail_with(NO_SPACE))
        with pytest.raises(files.ResultsError, match=r"seeds-0-1.*: No space left"):
            save(tmp_path, 11, range(2))
    after = set(tmp_path.rglob("*")) - {tmp_path / "checkpoints/000000011"}
    assert sorted(after) == before
    assert newest(tmp_path, range(2)) == (8, [])
    assert checkpoint.load(tmp_path, 8, [1])["x"].tolist() == [[8, 1]]


def test_save_in_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "checkpoints").write_text("a file in the way")
    with pytest.raises(files.ResultsError) as caught:
        save(tmp_path, 5, range(2))
    assert str(tmp_path) in one_line(caught)
    if os.geteuid():  # root may write everywhere
        (tmp_path / "read_only").mkdir(mode=0o500)
        with pytest.raises(files.ResultsError, match="Permission denied"):
            save(tmp_path / "read_only", 5, range(2))


def steps_of(run, seed):
    return [s for s in checkpoint.steps(run) if seed in checkpoint._pieces(run)[s]]


def test_prune_keeps_the_last_steps_and_other_seeds(tmp_path):
    for step in (5, 8, 11, 14):
        save(tmp_path, step, range(2))
    for step in (5, 8, 11):
        save(tmp_path, step, range(2, 4))
    checkpoint.prune(tmp_path, range(2))
    assert steps_of(tmp_path, 0) == steps_of(tmp_path, 1) == [11, 14]
    assert steps_of(tmp_path, 2) == steps_of(tmp_path, 3) == [5, 8, 11]
    checkpoint.prune(tmp_path, range(2, 4))
    assert steps_of(tmp_path, 2) == [8, 11]
    # A folder is removed with its last piece.
    names = {path.name for path in (tmp_path / "checkpoints").iterdir()}
    assert names == {"000000008", "000000011", "000000014"}
    assert newest(tmp_path, range(4)) == (11, [])
    assert not unfinished(tmp_path)


def test_prune_removes_the_steps_after_a_step(tmp_path):
    for step in (5, 8, 11):
        save(tmp_path, step, range(2))
        save(tmp_path, step, range(2, 4))
    checkpoint.prune(tmp_path, range(2), later_than=8)
    assert steps_of(tmp_path, 0) == [5, 8]
    assert steps_of(tmp_path, 2) == [5, 8, 11]
    checkpoint.prune(tmp_path, range(2), later_than=-1)
    assert steps_of(tmp_path, 0) == []
    checkpoint.prune(tmp_path / "none", range(2))


def test_prune_keeps_a_piece_until_all_seeds_in_it_have_later_ones(tmp_path):
    """Saved by one process, resumed by two."""
    for step in (5, 8):
        save(tmp_path, step, range(4))
    for step in (11, 14, 17):
        save(tmp_path, step, range(2))
        checkpoint.prune(tmp_path, range(2))
    assert steps_of(tmp_path, 0) == [5, 8, 14, 17]
    assert newest(tmp_path, range(2, 4)) == (8, [])
    for step in (11, 14):
        save(tmp_path, step, range(2, 4))
        checkpoint.prune(tmp_path, range(2, 4))
    assert steps_of(tmp_path, 3) == [11, 14]
    loaded = checkpoint.load(tmp_path, 14, range(4))["x"].tolist()
    assert loaded == [[14, seed] for seed in range(4)]


def test_a_damaged_shared_piece_does_not_hide_the_pieces_saved_later(tmp_path):
    for step in (5, 8):
        save(tmp_path, step, range(4))
    (piece_folder(tmp_path, 8, range(4)) / "manifest.json").unlink()
    for seeds in (range(2), range(2, 4)):
        checkpoint.prune(tmp_path, seeds, later_than=5)
        save(tmp_path, 8, seeds)
    assert newest(tmp_path, range(4)) == (8, [])


def test_prune_removes_the_unfinished_pieces_of_a_killed_process(tmp_path):
    save(tmp_path, 5, range(2))
    folder = tmp_path / "checkpoints/000000005"
    for name in (".seeds-0-1.abc.tmp", ".seeds-1-1.def.tmp", ".seeds-2-3.abc.tmp"):
        (folder / name / "arrays").mkdir(parents=True)
    checkpoint.prune(tmp_path, range(2))
    # Another process may be writing the third one.
    assert {path.name for path in unfinished(tmp_path)} == {".seeds-2-3.abc.tmp"}
    assert newest(tmp_path, range(2)) == (5, [])


def test_prune_names_a_piece_that_cannot_be_removed(tmp_path, monkeypatch):
    save(tmp_path, 5, range(2))
    denied = fail_with(PermissionError(13, "Permission denied"))
    monkeypatch.setattr(disk.os, "replace", denied)
    with pytest.raises(files.ResultsError, match="seeds-0-1: Permission denied"):
        checkpoint.prune(tmp_path, range(2), later_than=0)


def piece(run, step, size=1):
    return Piece(run, range(2), {"x": np.full((2, size), step)})


def test_writer_saves_and_keeps_the_last_steps(tmp_path):
    writer = Writer(report=None, saved=2)
    assert writer.saved == 2
    for step in (5, 8, 11, 14):
        writer.save([piece(tmp_path / "a", step), piece(tmp_path / "b", step)], step)
        writer.wait()
        assert writer.saved == step
    for name in "ab":  # `KEPT` steps beside the one being written
        assert checkpoint.steps(tmp_path / name) == [8, 11, 14]
    writer.close()
    for name in "ab":
        assert checkpoint.steps(tmp_path / name) == [11, 14]
        assert newest(tmp_path / name, range(2)) == (14, [])


def test_writer_saves_in_the_background_one_step_at_a_time(tmp_path, monkeypatch):
    permit, original, running = threading.Event(), checkpoint.save, []

    def slow(*args):
        running.append(args[1])
        assert permit.wait(20)
        original(*args)
        running.remove(args[1])

    monkeypatch.setattr(checkpoint, "save", slow)
    writer = Writer()
    writer.save([piece(tmp_path, 5)], 5)
    assert writer.saved is None
    threading.Timer(0.05, permit.set).start()
    writer.save([piece(tmp_path, 8)], 8)
    assert 5 not in running  # the first save ended before the second began
    assert writer.saved in (5, 8)
    writer.close()
    assert (writer.saved, checkpoint.steps(tmp_path)) == (8, [5, 8])


@pytest.mark.parametrize("error", [NO_SPACE, KeyError("odd")])
def test_writer_reports_a_save_that_fails_and_keeps_earlier_ones(
    tmp_path, monkeypatch, error
):
    lines = []
    writer = Writer(lines.append)
    writer.save([piece(tmp_path, 5)], 5)
    writer.wait()
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "_write_arrays", fail_with(error))
        for step in (8, 11, 14):
            writer.save([piece(tmp_path, step)], step)
        writer.wait()
    assert len(lines) == 3
    assert lines[0].startswith("no checkpoint at step 8: ")
    assert lines[0].endswith("; training continues")
    # Failed saves don't count as later steps.
    assert (writer.saved, newest(tmp_path, range(2))) == (5, (5, []))
    with pytest.raises(files.ResultsError, match=r"No space left|odd"):
        writer.close()
    writer.save([piece(tmp_path, 17)], 17)
    writer.close()
    assert (writer.saved, newest(tmp_path, range(2))) == (17, (17, []))


@pytest.fixture
def limited_files():
    """Makes the system refuse to write files beyond a size; yields how to set it."""
    _, hard = before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_writer_notices_at_once_that_the_system_cut_a_file(tmp_path, limited_files):
    lines = []
    writer = Writer(lines.append)
    for step, limit in ((5, -1), (8, 100_000), (11, -1)):
        limited_files(limit)
        writer.save([piece(tmp_path, step, size=20_000)], step)
        writer.wait()
        assert writer.saved == (5 if step == 8 else step)
    writer.close()
    assert [line.split(":")[0] for line in lines] == ["no checkpoint at step 8"]
    assert checkpoint.steps(tmp_path) == [5, 11]
    assert newest(tmp_path, range(2)) == (11, [])
    assert newest(tmp_path, range(2), at_most=10) == (5, [])
    assert not unfinished(tmp_path)
