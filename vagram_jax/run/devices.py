"""Seeds to devices and hosts: each device computes some lanes, and none asks another.

A lane is one seed of one config; lanes are the leading axis of everything here. Comes
in: a function of one lane. Goes out: one program over all lanes on all devices of all
hosts. Nothing here knows what a lane computes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

AXIS = "lanes"
"""The mesh axis that lanes are split over."""

MODES = ("vmap", "serial")
"""How the lanes of one device run: side by side, or one after the other."""

# Seconds that a program takes to compile; reading a smaller one saves nothing.
_WORTH_KEEPING = 0.3

# Random draws take XLA's compiler for CPUs three times as long with all its passes.
_COMPILED_SOON = {"xla_backend_optimization_level": "1"}

# What this process has compiled; the folder goes when the process ends.
_compiled: tempfile.TemporaryDirectory | None = None


class DeviceError(RuntimeError):
    """A device that isn't there, or holds too little. One line with what to do."""


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where and how lanes run. What they compute is the same up to rounding.

    Attributes:
      mode: of `MODES`. "serial" gives each lane the bits of a run of its own.
      mesh: one axis, named `AXIS`, over the devices to use; None takes all there are.
    """

    mode: str = "vmap"
    mesh: Mesh | None = None

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"seed_mode={self.mode!r}; accepted: {', '.join(MODES)}")
        if self.mesh is None:
            # A plain array of devices: `jax.make_mesh` may reorder them.
            object.__setattr__(self, "mesh", Mesh(np.array(_devices()), (AXIS,)))

    @property
    def sharding(self) -> NamedSharding:
        """How arrays with a lane axis lie on the devices."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def padded(self, num_lanes: int) -> int:
        """The least number of lanes, at least `num_lanes`, that all devices share."""
        return -(-num_lanes // self.mesh.size) * self.mesh.size


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the processes of a cluster. Must come before anything else asks JAX.

    Args:
      coordinator: `host:port` of process 0; None reads what SLURM, Open MPI or
        Kubernetes have set.
      num_processes: how many there are; None as above.
      process_id: which one this is; None as above.

    Raises:
      ValueError: nothing says who the others are.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"--distributed: {str(error).splitlines()[0]}; start it under SLURM, Open "
            "MPI or Kubernetes, or give --coordinator, --num_processes and --process_id"
        ) from error


def leave(status: int) -> None:
    """Ends one of several processes at once; a process on its own goes on.

    At an ordinary end it would wait for the others, and they for it.

    Args:
      status: the exit status.
    """
    if jax.distributed.is_initialized():
        os._exit(status)


def use_cpu(num_devices: int | None, *, num_lanes: int) -> None:
    """Splits the CPU into devices, which compute lanes side by side.

    Small networks keep one core busy and no more, so a device per core is faster. Must
    come before anything else asks JAX.

    Args:
      num_devices: how many; None takes one per core, no more than lanes need, unless
        the environment says how many or JAX runs already.
      num_lanes: that are to be shared.

    Raises:
      ValueError: it is too late.
    """
    chosen = num_devices
    if chosen is None:
        if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
            return
        if "JAX_NUM_CPU_DEVICES" in os.environ:
            return
        rows = -(-num_lanes // min(_cores(), num_lanes))
        chosen = -(-num_lanes // rows)
    try:
        jax.config.update("jax_num_cpu_devices", chosen)
    except RuntimeError:
        if num_devices is not None:
            raise ValueError(
                f"--cpu_devices={num_devices}: JAX runs already; set "
                "JAX_NUM_CPU_DEVICES before it does"
            ) from None


def share_compiled() -> None:
    """Lets the programs of this process share what was compiled, as long as it lives.

    Runs that differ in the loss have most of their programs in common. They are kept in
    a new folder that this user alone can open, for JAX runs what it finds there. A
    user's own `jax_compilation_cache_dir` stays as it is. Must come before anything is
    compiled; `JAX_ENABLE_COMPILATION_CACHE=false` keeps it off.
    """
    global _compiled
    is_asked = jax.config.jax_enable_compilation_cache and _compiled is None
    if not is_asked or jax.config.jax_compilation_cache_dir:
        return
    with contextlib.suppress(OSError):  # without a folder it is slower, no more
        _compiled = tempfile.TemporaryDirectory(prefix="vagram_jax-")
        jax.config.update("jax_compilation_cache_dir", _compiled.name)
        least = "jax_persistent_cache_min_compile_time_secs"
        jax.config.update(least, _WORTH_KEEPING)


def is_first() -> bool:
    """Whether this process is the one that writes tables and talks.

    Returns:
      True or False.
    """
    return jax.process_index() == 0


def over_lanes(
    function: Callable,
    layout: Layout,
    *,
    in_axes: Sequence[int | None],
    donate: Sequence[int] = (),
    runs_once: bool = False,
) -> Callable:
    """A function of one lane as one program over all lanes on all devices.

    Args:
      function: of one lane, pure.
      layout: where and how lanes run.
      in_axes: for each argument 0 if it has a lane axis, None if all lanes share it.
      donate: the arguments whose memory the result may take.
      runs_once: whether a CPU's program is to be compiled soon rather than run fast.

    Returns:
      The program; the number of lanes must be a multiple of the number of devices.
    """
    lanes, shared = PartitionSpec(AXIS), PartitionSpec()
    specs = tuple(lanes if axis == 0 else shared for axis in in_axes)
    # Under a plain sharded jit every callback of an environment would run on the first
    # device; shard_map runs it on the lane's own.
    sharded = jax.shard_map(
        partial(_on_one_device, function, layout.mode, tuple(in_axes)),
        mesh=layout.mesh,
        in_specs=specs,
        out_specs=lanes,
        check_vma=False,
    )
    is_cpu = layout.mesh.devices.flat[0].platform == "cpu"
    return jax.jit(
        sharded,
        donate_argnums=tuple(donate),
        compiler_options=_COMPILED_SOON if runs_once and is_cpu else None,
    )


def _on_one_device(function, mode, in_axes, *args):
    """A function of one lane on the lanes of one device."""

    def one(own):
        rest = iter(own)
        pairs = zip(args, in_axes, strict=True)
        return function(*(next(rest) if axis == 0 else arg for arg, axis in pairs))

    pairs = zip(args, in_axes, strict=True)
    mapped = tuple(arg for arg, axis in pairs if axis == 0)
    # A lane that has a device to itself needs no batching.
    if mode == "serial" or jax.tree.leaves(mapped)[0].shape[0] == 1:
        return _in_turn(one, mapped)
    return jax.vmap(one)(mapped)


def _in_turn(function, lanes):
    """`jax.lax.map`, but always a loop: XLA inlines one turn, which changes bits."""
    count = jax.tree.leaves(lanes)[0].shape[0]
    kinds = jax.eval_shape(function, jax.tree.map(lambda x: x[0], lanes))
    # A loop can't begin with random keys that aren't any: their data stands for them.
    data = jax.eval_shape(partial(jax.tree.map, without_keys), kinds)
    found = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), data)
    limit = jax.lax.optimization_barrier(jnp.int32(count))

    def turn(carry):
        index, found = carry
        result = function(jax.tree.map(lambda x: x[index], lanes))
        result = jax.tree.map(without_keys, result)
        return index + 1, jax.tree.map(lambda x, y: x.at[index].set(y), found, result)

    start = (jnp.int32(0), found)
    _, found = jax.lax.while_loop(lambda carry: carry[0] < limit, turn, start)
    return jax.tree.map(
        lambda x, kind: jax.random.wrap_key_data(x) if is_key(kind) else x, found, kinds
    )


def is_key(x: Any) -> bool:
    """Whether an array, or the shape of one, is of random keys.

    Args:
      x: anything with a dtype.

    Returns:
      True or False.
    """
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def without_keys(x: jax.Array) -> jax.Array:
    """The data of random keys; anything else as it is.

    Args:
      x: an array.

    Returns:
      An array of numbers.
    """
    return jax.random.key_data(x) if is_key(x) else x


def own_lanes(layout: Layout, num_lanes: int) -> range:
    """The lanes of this process's devices.

    Args:
      layout: where lanes run.
      num_lanes: of all processes, padded.

    Returns:
      Their numbers, one after the other.
    """
    places = layout.sharding.addressable_devices_indices_map((num_lanes,))
    numbers = sorted(i for (place,) in places.values() for i in range(num_lanes)[place])
    return range(numbers[0], numbers[-1] + 1)


def put(tree: Any, layout: Layout, num_lanes: int) -> Any:
    """Arrays of this process's lanes, put on its devices.

    Args:
      tree: NumPy arrays, `[len(own_lanes), ...]`.
      layout: where lanes run.
      num_lanes: of all processes, padded.

    Returns:
      Arrays of all lanes, `[num_lanes, ...]`.
    """

    def place(x):
        shape = (num_lanes, *x.shape[1:])
        return jax.make_array_from_process_local_data(layout.sharding, x, shape)

    return jax.tree.map(place, tree)


def fetch_own(tree: Any) -> Any:
    """The arrays of this process's lanes, copied to the host.

    Args:
      tree: arrays of all lanes; of random keys their data is fetched.

    Returns:
      NumPy arrays `[len(own_lanes), ...]` in memory of their own.
    """

    def fetch(x):
        shards = sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)
        data = [shard.data for shard in shards]
        if is_key(x):
            data = [jax.random.key_data(jax.random.clone(keys)) for keys in data]
        # Concatenating copies: the program may take the array's memory afterwards.
        return np.concatenate([np.asarray(part) for part in data])

    return jax.tree.map(fetch, tree)


def fetch_all(tree: Any) -> Any:
    """The arrays of all lanes, on the host of every process.

    Args:
      tree: arrays of all lanes; no random keys.

    Returns:
      NumPy arrays `[num_lanes, ...]`.
    """
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return fetch_own(tree)


def agree(value: int) -> int:
    """The least of what all processes say.

    Args:
      value: of this process.

    Returns:
      The same number in every process.
    """
    if jax.process_count() == 1:
        return value
    return int(np.min(multihost_utils.process_allgather(np.int64(value))))


def check_memory(program: Callable, *args: Any, num_lanes: int, layout: Layout) -> None:
    """Compiles a program and refuses it if a device's memory can't hold it.

    Args:
      program: from `over_lanes`.
      *args: its arguments, or their shapes.
      num_lanes: of them.
      layout: where they run.

    Raises:
      DeviceError: says how many lanes would fit.
    """
    usage = program.lower(*args).compile().memory_analysis()
    if usage is None or (limit := memory_limit()) is None:
        return
    needed = (
        usage.argument_size_in_bytes
        + usage.output_size_in_bytes
        + usage.temp_size_in_bytes
        - usage.alias_size_in_bytes
    )
    if needed <= limit:
        return
    per_lane = needed / (num_lanes // layout.mesh.size)
    fits = int(limit // per_lane) * layout.mesh.size
    advice = f"set --seed_chunk={fits}" if fits else "make buffers or networks smaller"
    raise DeviceError(
        f"{num_lanes} seeds need {needed / 1e9:.2f} GB on each of {layout.mesh.size} "
        f"devices; {limit / 1e9:.2f} GB are free; {fits} seeds fit; {advice}"
    )


def memory_limit() -> float | None:
    """The bytes that one device of this process can still give.

    Returns:
      Nine tenths of what is free; on a CPU the devices share the machine's memory. None
      where nobody knows.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return 0.9 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    free = _free_host_memory() if device.platform == "cpu" else None
    return None if free is None else 0.9 * free / jax.local_device_count()


def describe() -> str:
    """What programs run on, in words.

    Returns:
      Number and kind of the devices, and of the processes if there are several: results
      on a CPU have the same bits only where its model and vectors are the same.
    """
    kind = jax.devices()[0]
    name = _processor() if kind.platform == "cpu" else kind.platform
    text = f"{jax.device_count()} x {kind.device_kind} ({name})"
    processes = jax.process_count()
    return f"{text} in {processes} processes" if processes > 1 else text


def _devices() -> list[jax.Device]:
    """All devices of all processes, in the order of the processes."""
    try:
        return jax.devices()
    except (RuntimeError, AssertionError) as error:  # JAX says nothing of CUDA's
        reason = (str(error).strip() or "no such device").splitlines()[0]
        raise DeviceError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {reason}; install "
            "that platform's JAX, or unset JAX_PLATFORMS"
        ) from error


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model, and its widest vectors: XLA orders sums by them."""
    found: dict[str, str] = {}
    with contextlib.suppress(OSError):  # Linux alone has the file
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            found.setdefault(name.strip(), value.strip())
    model = found.get("model name") or platform.machine()
    flags = found.get("flags", "").split()
    vectors = [flag for flag in ("avx512f", "avx2") if flag in flags]
    return ", ".join([model, *vectors[:1]])


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free_host_memory() -> float | None:
    """What Linux says is available, or what a container leaves; None elsewhere."""
    found = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        found.append(1024.0 * int(line.split()[1]))
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # "max" is no number: no limit
        most = int((group / "memory.max").read_text())
        found.append(float(most - int((group / "memory.current").read_text())))
    return min(found, default=None)
