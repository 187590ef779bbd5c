"""A run that dies at any change of the file system ends with the same bytes or refuses.

In these tests a process dies by an exception: the chosen change is not made, or half
made, and from then on no change is made at all, not even by code that cleans up.
"""

import gc
import os
import shutil
import threading

import pytest
import session_cases as cases
from session_cases import CONFIG, Killed, programs_once, train, whole

from vagram_jax.run import session
from vagram_jax.storage import disk, files

__all__ = ["programs_once", "whole"]
pytestmark = pytest.mark.usefixtures("programs_once")

CHANGES = {"mkdir", "replace", "unlink", "rmdir", "write", "ftruncate", "fsync"}
OTHER = cases.spec(config=CONFIG.replace(divergence_slack=7.0))


class DyingSystem:
    """Replaces the modules `os` and `shutil` in `disk`."""

    def __init__(self, last):
        self.last, self.count, self.lock = last, 0, threading.Lock()

    def __getattr__(self, name):
        original = getattr(shutil if name == "rmtree" else os, name)
        if name not in {*CHANGES, "open", "rmtree"}:
            return original

        def call(*args, **kwargs):
            if name == "open" and not args[1] & os.O_CREAT:
                return original(*args, **kwargs)
            with self.lock:
                self.count += 1
                if self.count == self.last:
                    self._half(name, args, kwargs)
                if self.count >= self.last:
                    raise Killed
            return original(*args, **kwargs)

        return call

    def _half(self, name, args, kwargs):
        """Makes half of a change that isn't made in one step."""
        if name == "write":
            os.write(args[0], bytes(args[1])[: len(args[1]) // 2])
        if name == "rmtree":
            descriptor = os.open(args[0], os.O_RDONLY, **kwargs)
            for file in os.listdir(descriptor)[:1]:
                if os.path.isfile(f"/proc/self/fd/{descriptor}/{file}"):
                    os.unlink(file, dir_fd=descriptor)
            os.close(descriptor)


def run_until(last, root, *specs, **options):
    """Trains until so many changes; returns their number if training ended before."""
    system = DyingSystem(last)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(disk, "os", system)
        patch.setattr(disk, "shutil", system)
        patch.setattr(threading, "excepthook", lambda _: None)
        options = session.SessionOptions(layout=cases.LAYOUT, **options)
        try:
            specs = list(specs) or [cases.spec()]
            session.train_runs(specs, root, cases.STUDY, options=options, report=list)
        except Killed:
            gc.collect()  # releases the system's lock, as the end of a process does
            return None
    return system.count


def copy(source, target):
    if source is not None:
        shutil.copytree(source, target)
    return target


def check(tmp_path, whole, before, points, **options):
    """Kills training at the points and checks the files after `--resume`."""
    total, refused = run_until(10**9, copy(before, tmp_path / "all"), **options), 0
    cases.assert_same_run(tmp_path / "all", whole)
    assert total > 20
    for point in [p for p in points if p <= total]:
        root = copy(before, tmp_path / str(point))
        assert run_until(point, root, **options) is None
        try:
            train(root, resume=True)
        except (files.ResultsError, ValueError) as error:
            refused += 1
            assert "\n" not in str(error)
            assert "other settings" in str(error), (point, error)
            train(root, overwrite=True)
        cases.assert_same_run(root, whole)
        shutil.rmtree(root)
    return refused


SOME = {"start": range(3, 10**3, 19), "resume": range(2, 10**3, 19)}
SOME |= {"overwrite": (6, 12, 17, 24)}


@pytest.fixture(
    scope="module",
    params=[
        "some",
        # Some thousand calls of fsync take minutes on a slow disk.
        pytest.param("all", marks=[pytest.mark.slow, pytest.mark.timeout(7200)]),
    ],
)
def points(request):
    """The changes at which training is killed, by the name of the command."""
    every = range(1, 10**3)
    return SOME if request.param == "some" else dict.fromkeys(SOME, every)


def test_a_start_that_is_killed_is_resumed_to_the_same_bytes(tmp_path, whole, points):
    assert check(tmp_path, whole, None, points["start"]) == 0


def test_a_resumed_run_that_is_killed_is_resumed_to_the_same_bytes(
    tmp_path, whole, points
):
    train(tmp_path / "before", killed_at=4)
    before = tmp_path / "before"
    assert check(tmp_path, whole, before, points["resume"], resume=True) == 0


def test_a_killed_overwrite_is_never_continued_as_the_new_run(tmp_path, whole, points):
    train(tmp_path / "before", OTHER)
    before = tmp_path / "before"
    refused = check(tmp_path, whole, before, points["overwrite"], overwrite=True)
    assert refused > 0
