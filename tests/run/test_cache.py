"""The cache of compiled programs: whose it is, and who may turn it off."""

import json
import os
import stat

import jax
import pytest
import subprocesses

from vagram_jax.run import cache

SHARING = """
import json
import jax, jax.numpy as jnp
from vagram_jax.run import cache, devices

hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
cache._MIN_SECONDS = 0.0
for _ in range(2):
    cache.use(keep=KEEP)
x, layout = jnp.arange(8.0), devices.Layout()

def result(scale):
    def lane(x):
        return {"result": jnp.sin(x), "unused": scale}["result"]

    program = devices.over_lanes(lane, layout, in_axes=(0,))
    devices.check_memory(program, x, num_lanes=8, layout=layout)
    return program(x).tolist()

same = result(1.0) == result(2.0)
count = hits.count("/jax/compilation_cache/cache_hits")
print(json.dumps([jax.config.jax_compilation_cache_dir, same, count]))
"""


def share(keep, **env):
    """Compiles two equal programs; returns the folder and how many were read."""
    process = subprocesses.start(
        "-c",
        SHARING.replace("KEEP", str(keep)),
        num_devices=2,
        JAX_COMPILATION_CACHE_DIR="",
        **env,
    )
    status, out, error = subprocesses.finish(process)
    assert status == 0, error
    folder, same, hits = json.loads(out)
    assert same
    return folder, hits


def test_programs_are_read_again_by_a_later_process(tmp_path):
    base = str(tmp_path)
    folder, hits = share(True, XDG_CACHE_HOME=base)
    assert folder.startswith(f"{base}/vagram_jax/compiled-")
    for path in (folder, f"{base}/vagram_jax"):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700
    again, more_hits = share(True, XDG_CACHE_HOME=base)
    assert again == folder
    assert more_hits > hits > 0


def test_no_program_is_kept_on_request(tmp_path):
    folder, hits = share(False, XDG_CACHE_HOME=str(tmp_path))
    assert hits > 0
    assert not os.path.exists(folder)
    assert not [*tmp_path.iterdir()]


@pytest.fixture
def use(monkeypatch):
    """Calls `cache.use` with some settings; returns JAX's cache folder."""
    options = ("jax_enable_compilation_cache", "jax_compilation_cache_dir")
    options += ("jax_persistent_cache_min_compile_time_secs",)
    options += ("jax_compilation_cache_max_size",)
    previous = {name: getattr(jax.config, name) for name in options}

    def call(enabled=True, folder=None):
        jax.config.update("jax_enable_compilation_cache", enabled)
        jax.config.update("jax_compilation_cache_dir", folder)
        cache.use()
        return jax.config.jax_compilation_cache_dir

    monkeypatch.setattr(cache, "_own_folder", None)
    yield call
    for name, value in previous.items():
        jax.config.update(name, value)


def test_the_cache_of_the_user_stays_and_can_be_turned_off(use):
    assert use(folder="/a_users_own") == "/a_users_own"
    assert use(enabled=False) is None


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_is_not_used(use, tmp_path, monkeypatch, mode):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "vagram_jax").mkdir()
    (tmp_path / "vagram_jax").chmod(mode)
    assert not use().startswith(str(tmp_path / "vagram_jax"))


def test_a_link_is_not_used(use, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    (tmp_path / "vagram_jax").symlink_to(tmp_path / "elsewhere")
    assert "elsewhere" not in os.path.realpath(use())


def test_training_needs_no_folder_at_all(use, tmp_path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    assert use() is None
