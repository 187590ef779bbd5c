"""Lanes on devices: where they run changes no result, on one host or on several."""

import contextlib
import json
import os
import platform
import socket
import subprocess
import sys
import traceback
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import session_cases as cases

from vagram_jax.run import devices
from vagram_jax.storage import checkpoint

HERE = Path(__file__).parents[1]
LANES = 8
# Compiles in half the time; rounding aside, no result depends on it.
OPTIMIZED_LESS = "jax_disable_most_optimizations"


def python(*args, num_devices=1):
    """Another process with so many CPU devices."""
    count = f"--xla_force_host_platform_device_count={num_devices}"
    places = os.pathsep.join([str(HERE.parent), str(HERE)])
    settings = {"XLA_FLAGS": count, "PYTHONPATH": places, "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen(
        [sys.executable, *map(str, args)],
        env=os.environ | settings | {OPTIMIZED_LESS.upper(): "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """What it printed last, as JSON."""
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error[-3000:]
    return json.loads(out.splitlines()[-1])


CALLED_WITH = []


def host(x):
    CALLED_WITH.append(np.shape(x))
    return np.cos(x).astype(np.float32)


def lane(x, scale):
    """A small loop with random numbers, a matrix product and a call of the host."""
    key = jax.random.key(x["seed"])

    def step(carry, key):
        carry = jnp.tanh(x["matrix"] @ carry + 0.1 * jax.random.normal(key, (3,)))
        called = jax.pure_callback(
            host, jax.typeof(carry), carry, vmap_method="broadcast_all"
        )
        return scale * carry + called, carry.sum()

    return jax.lax.scan(step, jnp.ones(3), jax.random.split(key, 5))


def inputs(lanes=LANES):
    matrix = np.random.default_rng(0).normal(size=(lanes, 3, 3))
    return {"seed": np.arange(lanes, dtype=np.uint32), "matrix": np.float32(matrix)}


def over(layout, **settings):
    return devices.over_lanes(lane, layout, in_axes=(0, None), **settings)


def each_alone(tree, scale):
    """Each lane in a plain call of its own."""
    one = jax.jit(lane)
    rows = [
        one(jax.tree.map(lambda x: x[i], tree), scale) for i in range(len(tree["seed"]))
    ]
    return jax.tree.map(lambda *x: np.stack(x), *rows)


def assert_equal(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


def assert_close(found, wanted):
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-5), found, wanted
    )


# What follows runs in a process with four devices, all of it in the same one.


def four_devices_compute_what_one_does():
    layout, one = devices.Layout(), devices.Layout(mesh=of_one())
    found = over(layout)(inputs(), 0.5)
    assert len(found[0].sharding.device_set) == 4
    assert_close(found, over(one)(inputs(), 0.5))
    assert_close(found, each_alone(inputs(), 0.5))
    # A lane per device needs no batching.
    few = jax.tree.map(lambda x: x[:4], inputs())
    assert_equal(over(layout)(few, 0.5), each_alone(few, 0.5))


def of_one():
    return jax.sharding.Mesh(np.array(jax.devices()[:1]), (devices.AXIS,))


def serial_lanes_have_the_bits_of_plain_calls():
    for mesh in (None, of_one()):
        CALLED_WITH.clear()
        found = over(devices.Layout("serial", mesh))(inputs(), 0.5)
        jax.block_until_ready(found)
        # One lane at a time, which is why the bits are the same.
        assert CALLED_WITH == [(3,)] * (5 * LANES)
        assert_equal(found, each_alone(inputs(), 0.5))


def each_device_has_lanes_of_its_own():
    layout = devices.Layout()
    assert layout.mesh.size == 4
    assert [layout.padded(n) for n in (1, 4, 5, 8, 9)] == [4, 4, 8, 8, 12]
    assert devices.own_lanes(layout, 8) == range(8)
    assert devices.agree(-3) == -3
    assert devices.describe() == f"4 x cpu ({devices._processor()})"
    places = devices.put(np.arange(8), layout, 8).addressable_shards
    assert [s.data.tolist() for s in places] == [[0, 1], [2, 3], [4, 5], [6, 7]]


def what_is_put_comes_back():
    layout = devices.Layout()
    tree = inputs() | {"empty": np.empty((LANES, 0)), "bool": np.arange(LANES) > 3}
    placed = devices.put(tree, layout, LANES)
    for fetch in (devices.fetch_own, devices.fetch_all):
        back = fetch(placed)
        assert_equal(back, tree)
        assert jax.tree.map(lambda x: x.dtype, back) == jax.tree.map(
            lambda x: x.dtype, jax.tree.map(jnp.asarray, tree)
        )
    spread = jax.jit(jax.vmap(jax.random.key), out_shardings=layout.sharding)
    keys = spread(placed["seed"])
    wanted = jax.random.key_data(jax.vmap(jax.random.key)(jnp.arange(LANES)))
    # Fetching uses no key up.
    with jax.debug_key_reuse(True):
        for _ in range(2):
            assert_equal(devices.fetch_own(keys), wanted)
        jax.vmap(jax.random.normal)(keys)


def a_copy_outlives_the_memory_that_is_given_away():
    layout = devices.Layout()
    more = devices.over_lanes(lambda x: x + 1.0, layout, in_axes=(0,), donate=(0,))
    placed = devices.put(np.zeros((LANES, 1000), np.float32), layout, LANES)
    copy = devices.fetch_own(placed)
    found = more(placed)
    assert placed.is_deleted()
    found = more(found)
    assert (copy == 0).all()
    assert (np.asarray(found) == 2).all()
    kept = devices.over_lanes(lambda x: x + 1.0, layout, in_axes=(0,))
    kept(found)
    assert not found.is_deleted()


def lanes_that_fit_are_counted_on_all_devices():
    text = refused(devices.Layout(), lanes_that_fit=1.5)
    assert f"{LANES} seeds need" in text
    assert "on each of 4 devices" in text
    assert "4 seeds fit; set --seed_chunk=4" in text


def nothing_says_who_the_others_are():
    try:
        devices.initialize()
    except ValueError as error:
        assert "--coordinator" in str(error)
        assert str(error).startswith("--distributed: ")
        assert "\n" not in str(error)
    else:
        raise AssertionError("a cluster of nobody")


CHECKS = [
    nothing_says_who_the_others_are,  # before JAX is asked for anything
    four_devices_compute_what_one_does,
    serial_lanes_have_the_bits_of_plain_calls,
    each_device_has_lanes_of_its_own,
    what_is_put_comes_back,
    a_copy_outlives_the_memory_that_is_given_away,
    lanes_that_fit_are_counted_on_all_devices,
]


def run_checks():
    found = {}
    for check in CHECKS:
        try:
            check()
            found[check.__name__] = ""
        except Exception:
            found[check.__name__] = traceback.format_exc()
    print(json.dumps(found))


@pytest.fixture(scope="module")
def checked():
    """What the checks found in a process with four devices."""
    return finish(
        python("-c", "import test_devices; test_devices.run_checks()", num_devices=4)
    )


@pytest.mark.parametrize("check", [check.__name__ for check in CHECKS])
def test_on_four_devices(checked, check):
    assert not checked[check], checked[check]


# From here on in this process, with a single device.


def refused(layout, lanes_that_fit):
    """What is said of memory that holds so many lanes of each device."""
    program = over(layout)
    shapes = jax.eval_shape(lambda x: x, (inputs(), np.float32(0.5)))
    usage = program.lower(*shapes).compile().memory_analysis()
    needed = usage.argument_size_in_bytes + usage.output_size_in_bytes
    needed += usage.temp_size_in_bytes - usage.alias_size_in_bytes
    limit = lanes_that_fit * needed / (LANES // layout.mesh.size)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices, "memory_limit", lambda: limit)
        settings = {"num_lanes": LANES, "layout": layout}
        with pytest.raises(devices.DeviceError) as caught:
            devices.check_memory(program, *shapes, **settings)
        assert "\n" not in str(caught.value)
        patch.setattr(devices, "memory_limit", lambda: float(needed))
        devices.check_memory(program, *shapes, **settings)
        patch.setattr(devices, "memory_limit", lambda: None)
        devices.check_memory(program, *shapes, **settings)
    return str(caught.value)


def test_too_little_memory_is_refused_with_the_number_of_seeds_that_fit():
    text = refused(devices.Layout(), lanes_that_fit=3.5)
    assert text.startswith("8 seeds need 0.00 GB on each of 1 devices; ")
    assert text.endswith("3 seeds fit; set --seed_chunk=3")
    text = refused(devices.Layout(), lanes_that_fit=0.5)
    assert text.endswith("0 seeds fit; make buffers or networks smaller")


def test_memory_that_is_given_away_counts_once(monkeypatch):
    x, layout = jnp.ones((LANES, 100_000)), devices.Layout()
    monkeypatch.setattr(devices, "memory_limit", lambda: 1.5 * x.nbytes)
    more, settings = lambda x: x + 1, {"num_lanes": LANES, "layout": layout}
    thrifty = devices.over_lanes(more, layout, in_axes=(0,), donate=(0,))
    devices.check_memory(thrifty, x, **settings)
    lavish = devices.over_lanes(more, layout, in_axes=(0,))
    with pytest.raises(devices.DeviceError):
        devices.check_memory(lavish, x, **settings)


def test_a_program_that_runs_once_computes_the_same():
    draw, x = lambda x: jax.random.normal(jax.random.key(x), (5,)), jnp.arange(LANES)
    once = devices.over_lanes(draw, devices.Layout(), in_axes=(0,), runs_once=True)
    np.testing.assert_allclose(once(x), jax.vmap(draw)(x), rtol=1e-6)


def test_checking_memory_compiles_nothing_twice():
    program, traces = None, []

    def counted(x):
        traces.append(x)
        return x * 2

    program = devices.over_lanes(counted, devices.Layout(), in_axes=(0,))
    x = jnp.ones((LANES, 2))
    devices.check_memory(program, x, num_lanes=LANES, layout=devices.Layout())
    compiled = len(traces)
    program(x)
    assert len(traces) == compiled


def test_a_device_can_give_no_more_than_the_machine_has(monkeypatch):
    limit = devices.memory_limit()
    assert limit is None or 0 < limit < os.sysconf("SC_PAGE_SIZE") * os.sysconf(
        "SC_PHYS_PAGES"
    )
    monkeypatch.setattr(devices, "_free_host_memory", lambda: 1000.0)
    assert devices.memory_limit() == pytest.approx(900.0)
    monkeypatch.setattr(devices, "_free_host_memory", lambda: None)
    assert devices.memory_limit() is None


@pytest.mark.parametrize(
    ("cpuinfo", "wanted"),
    [
        (
            "model name\t: A\nflags\t\t: sse avx2 avx512f\n\nmodel name\t: B\n",
            "A, avx512f",
        ),
        ("model name\t: A 7\nflags\t\t: sse avx avx2", "A 7, avx2"),
        ("model name\t: A\nflags\t\t: sse", "A"),
        ("CPU part\t: 0xd40\n", platform.machine()),
        (None, platform.machine()),
    ],
)
def test_a_cpu_is_told_by_its_model_and_its_widest_vectors(tmp_path, cpuinfo, wanted):
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert devices._processor(tmp_path / "cpuinfo") == wanted


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="seed_mode='pmap'; accepted: vmap, serial"):
        devices.Layout("pmap")


@pytest.mark.parametrize(
    ("asked", "lanes", "wanted"),
    [(3, 8, 3), (None, 8, 4), (None, 5, 3), (None, 3, 3), (None, 1, 1), (None, 4, 4)],
)
def test_a_cpu_is_split_over_its_cores(monkeypatch, asked, lanes, wanted):
    chosen = {}
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "_cores", lambda: 4)
    monkeypatch.setattr(type(jax.config), "update", lambda _, *x: chosen.update([x]))
    devices.use_cpu(asked, num_lanes=lanes)
    assert chosen == {"jax_num_cpu_devices": wanted}


def test_a_cpu_is_not_split_against_the_environment(monkeypatch):
    def refuse(*_):
        raise AssertionError("nobody asked")

    monkeypatch.setattr(type(jax.config), "update", refuse)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    devices.use_cpu(None, num_lanes=8)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    devices.use_cpu(None, num_lanes=8)


def test_a_cpu_that_computes_already_is_not_split(monkeypatch):
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    jax.devices()
    with pytest.raises(ValueError, match=r"--cpu_devices=7: JAX runs already"):
        devices.use_cpu(7, num_lanes=8)
    devices.use_cpu(None, num_lanes=8)
    assert jax.device_count() == 1


# What a process compiles is kept while it lives.

SHARING = """
import json, os, pathlib, stat
import jax, jax.numpy as jnp
from vagram_jax import devices

hits = []
jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))
devices._WORTH_KEEPING = 0.0
for _ in range(2):
    devices.share_compiled()
place = jax.config.jax_compilation_cache_dir
x = jnp.arange(8.0)
layout = devices.Layout()

def found(scale):
    def lane(x):
        return {"result": jnp.sin(x), "unused": scale}["result"]

    program = devices.over_lanes(lane, layout, in_axes=(0,))
    devices.check_memory(program, x, num_lanes=8, layout=layout)
    return program(x).tolist()

same = found(1.0) == found(2.0)
count = hits.count("/jax/compilation_cache/cache_hits")
mode = place and stat.S_IMODE(os.stat(place).st_mode)
print(json.dumps([place, mode, same, count]))
"""


def shared(begin=""):
    """What a process says of two programs that are alike."""
    return finish(python("-c", begin + SHARING, num_devices=2))


def test_programs_that_are_alike_are_compiled_once():
    place, mode, same, hits = shared()
    assert mode == 0o700
    assert same
    assert hits > 0
    assert not Path(place).exists()


def test_a_users_own_cache_stays_and_a_user_can_have_none(monkeypatch, tmp_path):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    assert shared()[0] == str(tmp_path)
    assert tmp_path.exists()
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    monkeypatch.setenv("JAX_ENABLE_COMPILATION_CACHE", "false")
    assert shared() == [None, None, True, 0]


def test_where_no_folder_can_be_made_nothing_is_kept():
    begin = "import tempfile; tempfile.tempdir = '/nowhere'"
    assert shared(begin) == [None, None, True, 0]


# Runs that several processes share.


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def together(*runs, processes, num_devices):
    """Processes that train runs together; gives what each of them printed."""
    port, script = free_port(), HERE / "device_runs.py"
    started = [
        python(script, process, processes, port, *runs, num_devices=num_devices)
        for process in range(processes)
    ]
    try:
        return [finish(process) for process in reversed(started)][::-1]
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Runs of eight seeds, by one process with four devices, two with two, or one."""
    place = tmp_path_factory.mktemp("devices")
    found = {"four": together(place / "four", 20, 0, processes=1, num_devices=4)}
    with pytest.MonkeyPatch.context() as patch, contextlib.ExitStack() as stack:
        patch.setattr(cases.runner, "compiled", cases.compiled_once)
        stack.callback(
            jax.config.update, OPTIMIZED_LESS, jax.config.read(OPTIMIZED_LESS)
        )
        jax.config.update(OPTIMIZED_LESS, True)
        half = cases.RUN.replace(num_seeds=LANES, total_steps=14)
        cases.train(place / "one_then_two", run=half)
        runs = [place / "two", 20, 0, place / "two_then_one", 14, 0]
        runs += [place / "one_then_two", 20, 1]
        found["two"] = together(*runs, processes=2, num_devices=2)
        full = cases.RUN.replace(num_seeds=LANES)
        told = cases.train(place / "two_then_one", run=full, resume=True)
        assert told[0] == "two_then_one: going on from step 14"
    (place / "found.json").write_text(json.dumps(found))
    return place


def test_two_processes_share_lanes_and_agree(place):
    found = json.loads((place / "found.json").read_text())
    (four,), two = found["four"], found["two"]
    assert [one["is_first"] for one in two] == [True, False]
    text = f"4 x cpu ({devices._processor()}) in 2 processes"
    assert {one["describe"] for one in two} == {text}
    assert [one["least"] for one in (four, *two)] == [5, 4, 4]
    assert [one["own"] for one in two] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert [one["fetched"] for one in two] == [[0, 10, 20, 30], [40, 50, 60, 70]]
    for one in (four, *two):
        assert one["keys"] == one["fetched"]
        assert one["all"] == [10 * lane for lane in range(LANES)]


def test_two_processes_leave_the_tables_that_one_does(place):
    tables = [(place / name / "metrics.csv").read_bytes() for name in ("two", "four")]
    assert tables[0] == tables[1]


def test_two_processes_save_a_piece_each(place):
    for name, wanted in (("two", ["seeds-0-3", "seeds-4-7"]), ("four", ["seeds-0-7"])):
        folder = place / name / "checkpoints" / "000000020"
        assert sorted(piece.name for piece in folder.iterdir()) == wanted
        assert checkpoint.newest([(place / name, range(LANES))], strict=True) == 20
    found, wanted = (
        checkpoint.load(place / name, 20, range(LANES)) for name in ("two", "four")
    )
    assert_equal(found, wanted)


@pytest.mark.parametrize("name", ["one_then_two", "two_then_one"])
def test_what_some_processes_saved_others_go_on_with(place, name):
    found, wanted = cases.table(place / name), cases.table(place / "four")
    assert [row["env_steps"] for row in found] == cases.STEPS * LANES
    cases.assert_close(found, wanted, rel=1e-5, abs=1e-6)
    assert checkpoint.newest([(place / name, range(LANES))], strict=True) == 20
    assert not list((place / name).rglob("*.tmp"))
