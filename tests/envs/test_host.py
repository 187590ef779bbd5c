"""Functions on the host: programs that call them are kept on disk."""

import ctypes
import functools
import gc
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco_cases
import numpy as np
import pytest
import subprocesses

from vagram_jax import envs
from vagram_jax.envs import episodes, host

LATER_PROCESS = """
import functools, json, sys
import jax, jax.numpy as jnp, numpy as np
from vagram_jax.envs import episodes, host
from vagram_jax.run import cache, devices

events = []
jax.monitoring.register_event_listener(lambda name, **_: events.append(name))
cache._MIN_SECONDS = 0.0
cache.use()
factor = float(sys.argv[1])
times = host.HostFunction("times", lambda x: (factor * x,))

def lane(x):
    shape = jax.ShapeDtypeStruct((), jnp.float32)
    step = lambda x, _: (jax.vmap(functools.partial(times, [shape]))(x)[0], None)
    return jax.lax.scan(step, x, length=2)[0]

program = devices.over_lanes(lane, devices.Layout(), in_axes=(0,))
result = program(np.ones((4, 3), np.float32)).tolist()
count = lambda name: events.count(f"/jax/compilation_cache/{name}")
print(json.dumps([result, count("cache_hits"), count("cache_misses")]))
"""


def run_process(factor, folder):
    """Multiplies ones in lanes of two devices; returns result, hits and misses."""
    process = subprocesses.start(
        *("-c", LATER_PROCESS, factor),
        num_devices=2,
        JAX_COMPILATION_CACHE_DIR="",
        XDG_CACHE_HOME=str(folder),
    )
    status, out, error = subprocesses.finish(process)
    assert status == 0, error
    return json.loads(out)


def test_a_program_that_is_read_from_disk_calls_the_function_of_its_process(tmp_path):
    result, hits, misses = run_process(2, tmp_path)
    assert result == [[4.0] * 3] * 4
    assert (hits, misses > 0) == (0, True)
    result, hits, no_misses = run_process(3, tmp_path)
    assert result == [[9.0] * 3] * 4
    assert (hits, no_misses) == (misses, 0)


def like(x):
    return [jax.ShapeDtypeStruct(jnp.shape(x), jnp.result_type(x))]


@pytest.fixture
def as_callbacks(monkeypatch):
    """Makes all calls `jax.pure_callback`s, as on an accelerator."""
    monkeypatch.setattr(host, "_register", lambda: False)


@pytest.mark.parametrize("dtype", host._DTYPES.values(), ids=str)
def test_arrays_of_all_types_arrive_and_return(dtype, x64):
    seen = []

    def function(x, y):
        seen.append((x, y))
        return y, x[..., 0]

    function_on_host = host.HostFunction("swap", function)
    x, y = np.arange(6).reshape(2, 3).astype(dtype), np.array([True, False])
    results = jax.ShapeDtypeStruct((), bool), jax.ShapeDtypeStruct((), dtype)
    call = jax.jit(jax.vmap(functools.partial(function_on_host, results)))
    for actual, expected in zip(call(x, y), (y, x[:, 0]), strict=True):
        assert actual.dtype == expected.dtype
        np.testing.assert_array_equal(actual, expected)
    np.testing.assert_array_equal(seen[0][0], x)  # a copy, valid after the call
    assert seen[0][0].dtype == dtype


def test_a_simulation_has_the_bits_of_one_in_callbacks(monkeypatch):
    def simulate(env):
        states = mujoco_cases.reset(mujoco_cases.keys(4), env=env)
        actions = mujoco_cases.random_actions(env, 4, 30)
        return jax.block_until_ready(mujoco_cases.rollout(states, actions, env=env))

    actual = simulate(envs.make("hopper", physics="c"))
    monkeypatch.setattr(host, "_register", lambda: False)
    expected = simulate(envs.make("hopper", physics="c"))
    mujoco_cases.assert_same_bits(actual, expected)


@pytest.mark.parametrize("name", ["hopper", "gymnasium:InvertedPendulum-v5"])
def test_programs_of_simulators_hold_no_callback(name, request):
    def text():
        env = envs.make(name)

        def first_step(key):
            return env.step(env.reset(key), jnp.zeros(env.action_size))

        return jax.jit(first_step).lower(jax.random.key(0)).as_text()

    assert text().count("@vagram_jax_host") == 2
    assert "callback" not in text()
    request.getfixturevalue("as_callbacks")
    assert "callback" in text()


@pytest.mark.parametrize("way", ["by name", "as a callback"])
def test_the_last_line_of_an_error_is_that_of_the_function(way, request):
    if way == "as a callback":
        request.getfixturevalue("as_callbacks")

    def function(x):
        raise ValueError("no license")

    broken = host.HostFunction("broken", function)
    with pytest.raises(jax.errors.JaxRuntimeError) as caught:
        jax.block_until_ready(jax.jit(lambda x: broken(like(x), x))(1.0))
    assert str(caught.value).splitlines()[-1] == "ValueError: no license"


def test_functions_of_one_name_are_told_apart_by_their_number():
    ten, hundred = (
        host.HostFunction("multiply", lambda x, factor=factor: (factor * x,))
        for factor in (10, 100)
    )
    both = jax.jit(lambda x: (ten(like(x), x)[0], hundred(like(x), x)[0]))
    assert [float(x) for x in both(2.0)] == [20.0, 200.0]


def test_a_program_whose_function_no_longer_exists_says_so():
    mortal = host.HostFunction("mortal", lambda x: (x,))
    program = jax.jit(lambda x: mortal(like(x), x))
    assert program(1.0)[0] == 1.0
    del host._functions[mortal._name]
    # From its second call on, a program raises a ValueError (jax-ml/jax issue 34083).
    with pytest.raises((ValueError, RuntimeError), match="mortal 0: it no longer"):
        jax.block_until_ready(program(1.0))


def test_functions_end_with_their_environment():
    names = set(host._functions)
    env = envs.make("inverted_pendulum", physics="c")
    new = set(host._functions) - names
    assert {name[:-2] for name in new} == {
        "inverted_pendulum.xml reset",
        "inverted_pendulum.xml step",
    }
    del env
    gc.collect()
    assert not set(host._functions) & new


def test_an_unknown_version_of_the_ffi_is_not_used(tmp_path, monkeypatch):
    assert host._register()
    monkeypatch.setattr(jax.ffi, "include_dir", lambda: str(tmp_path))
    assert host._api_version.__wrapped__() == (-1, 0)
    header = tmp_path / "xla/ffi/api/c_api.h"
    header.parent.mkdir(parents=True)
    header.write_text("#define XLA_FFI_API_MAJOR 1\n#define XLA_FFI_API_MINOR 12\n")
    assert host._api_version.__wrapped__() == (1, 12)
    monkeypatch.setattr(host, "_api_version", lambda: (1, 12))
    assert not host._register.__wrapped__()


def test_structures_have_the_layout_of_the_installed_header():
    header = Path(jax.ffi.include_dir(), "xla/ffi/api/c_api.h").read_text()
    header = re.sub(r"//.*|const ", "", header)
    structures = {
        "XLA_FFI_Api_Version": host._Version,
        "XLA_FFI_Error_Create_Args": host._Error,
        "XLA_FFI_Buffer": host._Buffer,
        "XLA_FFI_Args": host._Buffers,
        "XLA_FFI_Rets": host._Buffers,
        "XLA_FFI_Attrs": host._Attributes,
        "XLA_FFI_ByteSpan": host._Text,
        "XLA_FFI_CallFrame": host._Frame,
        "XLA_FFI_Metadata": host._Metadata,
    }
    sizes = {name: ctypes.sizeof(own) for name, own in structures.items()}
    sizes |= {"size_t": 8, "int64_t": 8, "int": 4, "XLA_FFI_DataType": 4}
    sizes |= {"XLA_FFI_ExecutionStage": 4, "XLA_FFI_Error_Code": 4}
    for name, own in structures.items():
        body = re.search(rf"struct {name} {{(.*?)}}", header, re.DOTALL)[1]
        fields = [field.split() for field in body.split(";")][: len(own._fields_)]
        expected = [
            8 if type_name[-1] == "*" else sizes[type_name] for type_name, *_ in fields
        ]
        assert [ctypes.sizeof(kind) for _, kind in own._fields_] == expected, name


def test_an_episode_in_a_simulator_uses_no_key_twice(key_reuse):
    env = mujoco_cases.our_env("hopper", physics="c")

    def start_and_step(key_start, key_step):
        state = episodes.reset(key_start, env=env)
        action = jnp.zeros(env.action_size)
        return episodes.step(key_step, state, action, env=env, episode_length=1)

    after, *_ = jax.jit(start_and_step)(*mujoco_cases.keys(2))
    assert after.steps == 0
