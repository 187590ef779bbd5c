"""Lanes on devices: on one host or several, they compute the same."""

import json
import os
import platform
import socket

import device_checks
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import session_cases as cases
import subprocesses
from device_checks import LANES
from session_cases import programs_once

from vagram_jax.run import devices
from vagram_jax.storage import checkpoint

__all__ = ["programs_once"]


def test_a_lack_of_memory_is_refused_with_the_number_of_seeds_that_fit():
    text = device_checks.refusal(devices.Layout(), lanes_that_fit=3.5)
    assert text.startswith("8 seeds need 0.00 GB on each of 1 devices; ")
    assert text.endswith("3 seeds fit; set --seed_chunk=3")
    text = device_checks.refusal(devices.Layout(), lanes_that_fit=0.5)
    assert text.endswith("0 seeds fit; make buffers or networks smaller")


def test_donated_memory_counts_once(monkeypatch):
    x, layout = jnp.ones((LANES, 100_000)), devices.Layout()
    monkeypatch.setattr(devices, "memory_limit", lambda: 1.5 * x.nbytes)
    more, settings = lambda x: x + 1, {"num_lanes": LANES, "layout": layout}
    thrifty = devices.over_lanes(more, layout, in_axes=(0,), donate=(0,))
    devices.check_memory(thrifty, x, **settings)
    lavish = devices.over_lanes(more, layout, in_axes=(0,))
    with pytest.raises(devices.DeviceError):
        devices.check_memory(lavish, x, **settings)


def test_a_program_that_compiles_fast_computes_the_same():
    draw, x = lambda x: jax.random.normal(jax.random.key(x), (5,)), jnp.arange(LANES)
    once = devices.over_lanes(draw, devices.Layout(), in_axes=(0,), compile_fast=True)
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


def test_memory_limit_is_below_the_memory_of_the_machine(monkeypatch):
    limit = devices.memory_limit()
    assert limit is None or 0 < limit < os.sysconf("SC_PAGE_SIZE") * os.sysconf(
        "SC_PHYS_PAGES"
    )
    monkeypatch.setattr(devices, "_free_host_memory", lambda: 1000.0)
    assert devices.memory_limit() == pytest.approx(900.0)
    monkeypatch.setattr(devices, "_free_host_memory", lambda: None)
    assert devices.memory_limit() is None


@pytest.mark.parametrize(
    ("cpuinfo", "expected"),
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
def test_a_cpu_is_described_by_its_model_and_widest_vectors(
    tmp_path, cpuinfo, expected
):
    if cpuinfo is not None:
        (tmp_path / "cpuinfo").write_text(cpuinfo)
    assert devices._processor(tmp_path / "cpuinfo") == expected


def test_an_unknown_mode_is_refused():
    with pytest.raises(ValueError, match="seed_mode='pmap'; accepted: vmap, serial"):
        devices.Layout("pmap")


@pytest.mark.parametrize(
    ("num_devices", "lanes", "expected"),
    [(3, 8, 3), (None, 8, 4), (None, 5, 3), (None, 3, 3), (None, 1, 1), (None, 4, 4)],
)
def test_a_cpu_is_split_over_its_cores(monkeypatch, num_devices, lanes, expected):
    chosen = {}
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(devices, "_cores", lambda: 4)
    monkeypatch.setattr(type(jax.config), "update", lambda _, *x: chosen.update([x]))
    devices.use_cpu(num_devices, num_lanes=lanes)
    assert chosen == {"jax_num_cpu_devices": expected}


def test_a_cpu_is_not_split_against_the_environment(monkeypatch):
    def refuse(*_):
        raise AssertionError("the CPU was split")

    monkeypatch.setattr(type(jax.config), "update", refuse)
    monkeypatch.setenv("JAX_NUM_CPU_DEVICES", "2")
    devices.use_cpu(None, num_lanes=8)
    monkeypatch.delenv("JAX_NUM_CPU_DEVICES")
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=2")
    devices.use_cpu(None, num_lanes=8)


def test_a_cpu_that_is_in_use_is_not_split(monkeypatch):
    for name in ("XLA_FLAGS", "JAX_NUM_CPU_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    jax.devices()
    with pytest.raises(ValueError, match=r"--cpu_devices=7: JAX is already in use"):
        devices.use_cpu(7, num_lanes=8)
    devices.use_cpu(None, num_lanes=8)
    assert jax.device_count() == 1


# Four devices in one process, in two, and a single one.


def free_port():
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def train_together(*runs, processes, num_devices):
    """Trains runs in several processes; returns the JSON that each of them printed."""
    script, port = subprocesses.ROOT / "tests/device_runs.py", free_port()
    started = [
        subprocesses.start(
            script, number, processes, port, *runs, num_devices=num_devices
        )
        for number in range(processes)
    ]
    try:
        answers = []
        for process in reversed(started):
            status, out, error = subprocesses.finish(process)
            assert status == 0, error[-3000:]
            answers.append(json.loads(out.splitlines()[-1]))
        return answers[::-1]
    finally:
        for process in started:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def runs(tmp_path_factory, programs_once):
    """A results folder with runs of four seeds, and the answers of the processes.

    One process with four devices, two processes with two, and this process with one
    train a run, or resume a run of the others.
    """
    root = tmp_path_factory.mktemp("devices")
    arguments = [(root, "four", 4, 20, "new"), (root, "four_then_two", 4, 14, "new")]
    arguments += [(root, "uneven", 3, 14, "new")]
    (four,) = train_together(*sum(arguments, ()), processes=1, num_devices=4)
    arguments = [(root, "two", 4, 20, "new"), (root, "two_then_one", 4, 14, "new")]
    arguments += [(root, "four_then_two", 4, 20, "resume")]
    two = train_together(*sum(arguments, ()), processes=2, num_devices=2)
    spec = cases.spec("two_then_one", run_config=cases.RUN.replace(num_seeds=4))
    # In chunks, so that the program is that of other tests.
    lines = cases.train(root, spec, resume=True, seed_chunk=cases.SEEDS)
    return root, four, two, lines


@pytest.mark.parametrize("check", [check.__name__ for check in device_checks.CHECKS])
def test_with_four_devices(runs, check):
    _, four, _, _ = runs
    assert not four["checks"][check], four["checks"][check]


def test_two_processes_split_the_lanes_and_agree(runs):
    _, four, two, _ = runs
    assert [one["is_first"] for one in two] == [True, False]
    text = f"4 x cpu ({devices._processor()}) in 2 processes"
    assert {one["describe"] for one in two} == {text}
    assert [one["least"] for one in (four, *two)] == [5, 4, 4]
    assert [one["own"] for one in two] == [[0, 1], [2, 3]]
    assert [one["fetched"] for one in two] == [[0, 10], [20, 30]]
    for one in (four, *two):
        assert one["keys"] == one["fetched"]
        assert one["all"] == [0, 10, 20, 30]


def test_only_the_first_of_two_processes_reports(runs):
    _, _, (first, second), _ = runs
    assert "four_then_two: resuming from step 14" in first["lines"]
    assert second["lines"] == []


def test_two_processes_leave_the_tables_that_one_does(runs):
    root = runs[0]
    tables = [
        (cases.folder_of(root, name) / "metrics.csv").read_bytes()
        for name in ("two", "four", "four_then_two")
    ]
    assert tables[0] == tables[1] == tables[2]


def test_two_processes_save_a_piece_each(runs):
    root = runs[0]
    pieces = {"two": ["seeds-0-1", "seeds-2-3"], "four": ["seeds-0-3"]}
    for name, expected in pieces.items():
        run = cases.folder_of(root, name)
        folder = run / "checkpoints" / "000000020"
        assert sorted(piece.name for piece in folder.iterdir()) == expected
        assert checkpoint.newest([(run, range(4))], strict=True) == 20
    cases.assert_same_states(
        *(cases.last_states(root, name, range(4)) for name in pieces)
    )


def test_another_number_of_devices_resumes_and_gives_the_same_numbers(runs):
    root, _, _, lines = runs
    assert "two_then_one: resuming from step 14" in lines
    table = cases.table(root, "two_then_one")
    assert [row["env_steps"] for row in table] == cases.STEPS * cases.LANES
    cases.assert_close(table, cases.table(root, "four"), rel=1e-5, abs=1e-6)
    folder = cases.folder_of(root, "two_then_one")
    assert checkpoint.newest([(folder, range(4))], strict=True) == 20


def test_seeds_that_devices_cannot_share_evenly_are_padded(runs):
    root, four, _, _ = runs
    assert "uneven: compiling and warming up 3 seeds" in four["lines"]
    table = cases.table(root, "uneven")
    assert {row["seed"] for row in table} == {0, 1, 2}
    rows = [row for row in cases.table(root, "four") if row["env_steps"] <= 14]
    assert table == rows[: len(table)]
    run = cases.folder_of(root, "uneven")
    assert [p.name for p in (run / "checkpoints/000000014").iterdir()] == ["seeds-0-2"]
    arrays = checkpoint.load(run, 14, range(3))
    assert all(len(array) == 3 for array in arrays.values())


def test_peak_memory_is_that_of_the_process_and_never_falls():
    before = devices.peak_memory()
    assert before["memory_mb"] > 50  # JAX alone needs more
    block = np.ones(40_000_000)  # 320 MB
    after = devices.peak_memory()
    assert after["memory_mb"] >= before["memory_mb"]
    del block
    assert devices.peak_memory()["memory_mb"] >= after["memory_mb"]
    assert before["device_memory_mb"] is None  # a CPU has none of its own
