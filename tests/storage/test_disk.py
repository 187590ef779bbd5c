"""No call on a results folder follows a link, waits for a FIFO or opens a device."""

import errno
import os
import stat

import pytest

from vagram_jax.storage import disk


@pytest.fixture
def victim(tmp_path):
    """A folder outside the results, which no test may change."""
    folder = tmp_path / "victim"
    (folder / "inner").mkdir(parents=True)
    (folder / "x").write_text("precious")
    before = sorted(folder.rglob("*")), (folder / "x").stat()
    yield folder
    assert (sorted(folder.rglob("*")), (folder / "x").stat()) == before
    assert (folder / "x").read_text() == "precious"


@pytest.fixture
def run(tmp_path):
    """The folder of a run."""
    folder = tmp_path / "results" / "run"
    folder.mkdir(parents=True)
    return folder


def append(path):
    with disk.open_file(path, "ab") as file:
        disk.write(file, b"more")


def create(path):
    with disk.open_file(path, "xb") as file:
        disk.write(file, b"new")


CHANGES = {
    "append": append,
    "create": create,
    "read": disk.read,
    "rename": lambda path: disk.rename(path, "y"),
    "touch": disk.touch,
    "sync": disk.sync,
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_link_on_the_way_to_a_file_is_refused(run, victim, name):
    (run / "folder").symlink_to(victim)
    with pytest.raises(OSError, match="folder is a link") as caught:
        CHANGES[name](run / "folder" / "x")
    assert caught.value.errno == errno.ELOOP


@pytest.mark.parametrize("name", ["append", "create", "read", "touch", "sync"])
@pytest.mark.parametrize("target", ["x", "missing", "inner"])
def test_a_file_that_is_a_link_is_refused(run, victim, name, target):
    (run / "x").symlink_to(victim / target)
    with pytest.raises(OSError):
        CHANGES[name](run / "x")
    assert not (victim / "missing").exists()


def test_remove_and_rename_take_a_link_and_not_its_target(run, victim):
    for target in ("x", "inner", ""):
        (run / "link").symlink_to(victim / target)
        disk.rename(run / "link", "renamed")
        disk.remove(run / "renamed")
        assert disk.names(run) == []


def test_remove_leaves_what_links_in_a_folder_point_to(run, victim):
    (run / "folder" / "deep").mkdir(parents=True)
    (run / "folder" / "deep" / "link").symlink_to(victim)
    (run / "folder" / "file").symlink_to(victim / "x")
    disk.remove(run / "folder")
    disk.remove(run / "folder")  # a missing one is no error
    assert disk.names(run) == []


def test_folders_are_not_made_or_listed_or_removed_through_a_link(run, victim):
    (run / "link").symlink_to(victim)
    for path in (run / "link", run / "link" / "new", run / "link" / "inner"):
        with pytest.raises(OSError, match="link is a link"):
            disk.make_folder(path)
        assert disk.names(path) == []
        assert not disk.is_folder(path)
        disk.remove_empty(path)
    with pytest.raises(OSError, match="link is a link"):
        disk.remove(run / "link" / "inner")


@pytest.mark.parametrize("mode", ["rb", "ab"])
def test_a_fifo_and_a_folder_are_refused_without_waiting(run, mode):
    os.mkfifo(run / "fifo")
    (run / "folder").mkdir()
    for name in ("fifo", "folder"):
        with pytest.raises(OSError), disk.open_file(run / name, mode):
            pass


def test_a_file_with_a_second_name_is_read_but_not_changed(run, victim):
    os.link(victim / "x", run / "x")
    assert disk.read(run / "x") == b"precious"
    with pytest.raises(OSError, match="hard link"):
        append(run / "x")
    os.unlink(run / "x")


def test_read_refuses_a_file_that_is_too_long(run):
    (run / "x").write_bytes(b"12345")
    assert disk.read(run / "x", limit=5) == b"12345"
    with pytest.raises(OSError, match="more than 4 bytes"):
        disk.read(run / "x", limit=4)


def test_files_are_made_as_the_user_s_mask_says(run):
    create(run / "x")
    append(run / "x")
    assert (run / "x").read_bytes() == b"newmore"
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE((run / "x").stat().st_mode) == 0o666 & ~mask
    with pytest.raises(FileExistsError):
        create(run / "x")


def test_relative_paths_and_paths_without_read_permission_work(run, monkeypatch):
    monkeypatch.chdir(run.parent)
    run.parent.chmod(0o311)  # as of a shared home folder
    try:
        path = type(run)("run/new/folder")
        disk.make_folder(path)
        create(path / "x")
        assert disk.names(path) == ["x"]
        assert disk.status(path / "y") is None
        assert disk.status(path / "missing" / "y") is None
    finally:
        run.parent.chmod(0o755)


def test_without_descriptors_of_folders_links_are_refused_too(run, victim, monkeypatch):
    monkeypatch.setattr(disk, "_HAS_DESCRIPTORS", False)  # as on Windows
    (run / "link").symlink_to(victim)
    for name in CHANGES:
        with pytest.raises(OSError, match="is a link"):
            CHANGES[name](run / "link" / "x")
    create(run / "x")
    disk.rename(run / "x", "y")
    assert disk.names(run) == ["link", "y"]


def open_descriptors():
    return set(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else None


def test_sync_waits_for_a_file_and_for_the_names_in_a_folder(tmp_path, monkeypatch):
    path = tmp_path / "x"
    path.write_text("x")
    synced, fsync = [], os.fsync

    def recorded(descriptor):
        synced.append(os.fstat(descriptor).st_ino)
        fsync(descriptor)

    before = open_descriptors()
    monkeypatch.setattr(disk.os, "fsync", recorded)
    disk.sync(path)
    disk.sync(tmp_path)
    assert synced == [path.stat().st_ino, tmp_path.stat().st_ino]
    assert open_descriptors() == before


def test_sync_reports_a_file_that_the_disk_refuses_but_no_folder(tmp_path, monkeypatch):
    def refuse(_):
        raise OSError(errno.EIO, "Input/output error")

    (tmp_path / "x").write_text("x")
    monkeypatch.setattr(disk.os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        disk.sync(tmp_path / "x")
    disk.sync(tmp_path)  # some systems can't sync a folder
    with pytest.raises(FileNotFoundError):
        disk.sync(tmp_path / "missing")
