"""Runs lanes on devices: one program over all lanes, on one host or several.

A lane is one seed of one config. Lanes are the leading axis of every array here. They
are split over the devices and need no communication.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, cast

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

try:
    import resource
except ImportError:  # Windows
    resource = None

AXIS = "lanes"
"""The name of the mesh axis that lanes are split over."""

MODES = ("vmap", "serial")
"""How one device runs its lanes: at the same time, or one after the other."""

# With all passes, XLA's CPU compiler needs three times as long for random draws.
_FAST_COMPILATION = {"xla_backend_optimization_level": "1"}

# The default of `Layout.mesh`, which `Layout.__post_init__` replaces by a mesh.
_ALL_DEVICES = cast(Mesh, None)


class DeviceError(RuntimeError):
    """A device is missing or has too little memory. One line with a remedy.

    Attributes:
      status: the exit status of a command that ends with this error.
    """

    status = 6


@dataclasses.dataclass(frozen=True)
class Layout:
    """The devices that lanes run on. It changes results only through rounding.

    Attributes:
      mode: one of `MODES`. With "serial" a lane has the same bits in any company.
      mesh: the devices, with one axis named `AXIS`; None means all devices.
    """

    mode: str = "vmap"
    mesh: Mesh = _ALL_DEVICES

    def __post_init__(self):
        if self.mode not in MODES:
            raise ValueError(f"seed_mode={self.mode!r}; accepted: {', '.join(MODES)}")
        if self.mesh is None:
            object.__setattr__(self, "mesh", _all_devices())

    @property
    def sharding(self) -> NamedSharding:
        """The sharding of arrays with a lane axis."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def padded(self, num_lanes: int) -> int:
        """`num_lanes` rounded up to a multiple of the number of devices."""
        return -(-num_lanes // self.mesh.size) * self.mesh.size


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
) -> None:
    """Joins the processes of a cluster. Must be called before JAX is used.

    Args:
      coordinator: `host:port` of process 0. None reads this and the other two from the
        environment of SLURM, Open MPI or Kubernetes.
      num_processes: the number of processes.
      process_id: the number of this process, from 0.

    Raises:
      ValueError: the other processes are unknown or can't be reached.
    """
    try:
        jax.distributed.initialize(coordinator, num_processes, process_id)
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"--distributed: {str(error).splitlines()[0]}; start it under SLURM, Open "
            "MPI or Kubernetes, or give --coordinator, --num_processes and --process_id"
        ) from error


def leave(status: int) -> None:
    """Exits at once if this is one of several processes; otherwise does nothing.

    An ordinary exit would wait for the other processes, which wait for this one.
    """
    if jax.distributed.is_initialized():
        os._exit(status)


def use_cpu(num_devices: int | None, *, num_lanes: int) -> None:
    """Splits the CPU into devices, which run lanes in parallel.

    Small networks keep only one core busy, so one device per core is faster. Must be
    called before JAX is used.

    Args:
      num_devices: the number of devices. None means one per core but no more than the
        lanes need, unless the environment sets the number or JAX is already in use.
      num_lanes: the number of lanes that will run.

    Raises:
      ValueError: `num_devices` is set and JAX is already in use.
    """
    count = num_devices
    if count is None:
        if "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
            return
        if "JAX_NUM_CPU_DEVICES" in os.environ:
            return
        lanes_per_device = -(-num_lanes // min(_cores(), num_lanes))
        count = -(-num_lanes // lanes_per_device)
    try:
        jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError:
        if num_devices is not None:
            raise ValueError(
                f"--cpu_devices={num_devices}: JAX is already in use; set "
                "JAX_NUM_CPU_DEVICES before it starts"
            ) from None


def is_first() -> bool:
    """Whether this is the process that writes tables and prints."""
    return jax.process_index() == 0


def over_lanes(
    function: Callable,
    layout: Layout,
    *,
    in_axes: Sequence[int | None],
    donate: Sequence[int] = (),
    compile_fast: bool = False,
) -> Callable:
    """Compiles a pure function of one lane to a program over all lanes and devices.

    Args:
      function: a pure function of one lane.
      layout: the devices.
      in_axes: for each argument 0 if it has a lane axis, None if all lanes share it.
      donate: the arguments whose memory the result may reuse.
      compile_fast: on a CPU, compile in less time to a slower program.

    Returns:
      The program. The number of lanes must be a multiple of the number of devices.
    """
    lanes, shared = PartitionSpec(AXIS), PartitionSpec()
    specs = tuple(lanes if axis == 0 else shared for axis in in_axes)
    # With a plain sharded jit, a call of a simulator would take the lanes of all
    # devices. With shard_map each call takes those of its device.
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
        compiler_options=_FAST_COMPILATION if compile_fast and is_cpu else None,
    )


def _on_one_device(function, mode, in_axes, *args):
    """Applies a function of one lane to the lanes of one device."""

    def lane(index):
        pairs = zip(args, in_axes, strict=True)
        return [
            arg if axis is None else jax.tree.map(lambda x: x[index], arg)
            for arg, axis in pairs
        ]

    def turn(carry):
        index, results = carry
        result = jax.tree.map(without_keys, function(*lane(index)))
        results = jax.tree.map(lambda x, y: x.at[index].set(y), results, result)
        return index + 1, results

    pairs = zip(args, in_axes, strict=True)
    mapped = jax.tree.leaves([arg for arg, axis in pairs if axis == 0])
    count = mapped[0].shape[0]
    # A single lane on a device needs no batching.
    if mode == "vmap" and count > 1:
        return jax.vmap(function, in_axes)(*args)
    # Not `jax.lax.map`: XLA inlines a loop of one turn, which changes bits.
    shapes = jax.eval_shape(function, *jax.eval_shape(lane, 0))
    # The loop carries the data of random keys, which can be initialized with zeros.
    data = jax.eval_shape(partial(jax.tree.map, without_keys), shapes)
    results = jax.tree.map(lambda x: jnp.zeros((count, *x.shape), x.dtype), data)
    limit = jax.lax.optimization_barrier(jnp.int32(count))
    start = (jnp.int32(0), results)
    _, results = jax.lax.while_loop(lambda carry: carry[0] < limit, turn, start)
    return jax.tree.map(
        lambda x, like: jax.random.wrap_key_data(x) if is_key(like) else x,
        results,
        shapes,
    )


def is_key(x: Any) -> bool:
    """Whether an array, or the shape of one, has random keys as elements."""
    return jnp.issubdtype(x.dtype, jax.dtypes.prng_key)


def without_keys(x: jax.Array) -> jax.Array:
    """The data of random keys; any other array unchanged."""
    return jax.random.key_data(x) if is_key(x) else x


def own_lanes(layout: Layout, num_lanes: int) -> range:
    """The lanes on this process's devices.

    Args:
      layout: the devices.
      num_lanes: the number of lanes of all processes, with padding.

    Returns:
      Consecutive lane numbers.
    """
    slices = layout.sharding.addressable_devices_indices_map((num_lanes,))
    rows = [index[0] for index in slices.values() if index]
    numbers = sorted(i for each in rows for i in range(num_lanes)[each])
    return range(numbers[0], numbers[-1] + 1)


def put(tree: Any, layout: Layout, num_lanes: int) -> Any:
    """Moves arrays of this process's lanes to its devices.

    Args:
      tree: NumPy arrays, `[len(own_lanes), ...]`.
      layout: the devices.
      num_lanes: the number of lanes of all processes, with padding.

    Returns:
      Arrays of all lanes, `[num_lanes, ...]`.
    """

    def put_one(x):
        shape = (num_lanes, *x.shape[1:])
        return jax.make_array_from_process_local_data(layout.sharding, x, shape)

    return jax.tree.map(put_one, tree)


def fetch_own(tree: Any) -> Any:
    """Copies the arrays of this process's lanes to the host.

    Args:
      tree: arrays of all lanes. Of random keys the data are copied.

    Returns:
      NumPy arrays `[len(own_lanes), ...]` that own their memory.
    """

    def fetch(x):
        shards = sorted(x.addressable_shards, key=lambda s: s.index[0].start or 0)
        data = [shard.data for shard in shards]
        if is_key(x):
            data = [jax.random.key_data(jax.random.clone(keys)) for keys in data]
        # A later program may reuse the array's memory; concatenating copies it.
        return np.concatenate([np.asarray(part) for part in data])

    return jax.tree.map(fetch, tree)


def fetch_all(tree: Any) -> Any:
    """Copies the arrays of all lanes to the host of every process.

    Args:
      tree: arrays of all lanes, without random keys.

    Returns:
      NumPy arrays `[num_lanes, ...]`.
    """
    if jax.process_count() > 1:
        return multihost_utils.process_allgather(tree, tiled=True)
    return fetch_own(tree)


def agree(value: int) -> int:
    """The smallest value that any process passes."""
    if jax.process_count() == 1:
        return value
    return int(np.min(multihost_utils.process_allgather(np.int64(value))))


def check_memory(
    program: Callable,
    *args: Any,
    num_lanes: int,
    layout: Layout,
    limit: float | None = None,
) -> None:
    """Compiles a program and raises if it needs more memory than a device has.

    Args:
      program: from `over_lanes`.
      *args: its arguments, or their shapes.
      num_lanes: the number of lanes.
      layout: the devices.
      limit: the bytes that a device had free before the arguments were made; None asks
        `memory_limit`.

    Raises:
      DeviceError: with the number of lanes that would fit.
    """
    limit = memory_limit() if limit is None else limit
    usage = program.lower(*args).compile().memory_analysis()
    if usage is None or limit is None:
        return
    needed = (
        usage.argument_size_in_bytes
        + usage.output_size_in_bytes
        + usage.temp_size_in_bytes
        - usage.alias_size_in_bytes
    )
    if needed > limit:
        raise DeviceError(_too_large(needed, limit, num_lanes, layout))


def check_size(bytes_per_lane: int, *, num_lanes: int, layout: Layout) -> None:
    """Raises if the states of some lanes alone need more memory than a device has.

    Raises:
      DeviceError: with the number of lanes that would fit.
    """
    needed = bytes_per_lane * layout.padded(num_lanes) // layout.mesh.size
    limit = memory_limit()
    if limit is not None and needed > limit:
        num_lanes = layout.padded(num_lanes)
        raise DeviceError(_too_large(needed, limit, num_lanes, layout))


def _too_large(needed: float, limit: float, num_lanes: int, layout: Layout) -> str:
    per_lane = needed / (num_lanes // layout.mesh.size)
    fits = int(limit // per_lane) * layout.mesh.size
    remedy = f"set --seed_chunk={fits}" if fits else "make buffers or networks smaller"
    return (
        f"{num_lanes} seeds need {needed / 1e9:.2f} GB on each of {layout.mesh.size} "
        f"devices; {limit / 1e9:.2f} GB are free; {fits} seeds fit; {remedy}"
    )


def num_bytes(shapes: Any) -> int:
    """The bytes of arrays or of their shapes; random keys count as two numbers."""
    sizes = [
        x.size * (8 if is_key(x) else x.dtype.itemsize) for x in jax.tree.leaves(shapes)
    ]
    return sum(sizes)


def memory_limit() -> float | None:
    """The bytes that one device of this process may still use.

    Returns:
      90% of the free memory; the devices of a CPU share the machine's memory. None if
      the free memory is unknown.
    """
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    if "bytes_limit" in stats:
        return 0.9 * (stats["bytes_limit"] - stats.get("bytes_in_use", 0))
    free = _free_host_memory() if device.platform == "cpu" else None
    return None if free is None else 0.9 * free / jax.local_device_count()


def peak_memory() -> dict[str, int | None]:
    """The peak memory so far in MB, by column of `timing.csv`.

    Returns:
      `memory_mb`, of this process, and `device_memory_mb`, of the device of this
      process that used most; None where the system or the backend doesn't tell.
    """
    stats = (device.memory_stats() or {} for device in jax.local_devices())
    peaks = [each["peak_bytes_in_use"] for each in stats if "peak_bytes_in_use" in each]
    host = None
    if resource is not None:
        unit = 1 if sys.platform == "darwin" else 1024  # bytes of ru_maxrss
        host = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    numbers = {"memory_mb": host, "device_memory_mb": max(peaks, default=None)}
    return {name: n if n is None else round(n / 1e6) for name, n in numbers.items()}


def describe() -> str:
    """Number and kind of the devices, and the number of processes if several.

    The text of a CPU names its model and vector instructions: results have the same
    bits only on CPUs where both are the same.
    """
    kind = jax.devices()[0]
    name = _processor() if kind.platform == "cpu" else kind.platform
    text = f"{jax.device_count()} x {kind.device_kind} ({name})"
    processes = jax.process_count()
    return f"{text} in {processes} processes" if processes > 1 else text


def _all_devices() -> Mesh:
    """All devices of all processes, ordered by process."""
    try:
        # `jax.make_mesh` may reorder the devices.
        return Mesh(np.array(jax.devices()), (AXIS,))
    except (RuntimeError, AssertionError) as error:  # JAX's CUDA error has no message
        reason = (str(error).strip() or "no such device").splitlines()[0]
        raise DeviceError(
            f"JAX_PLATFORMS={os.environ.get('JAX_PLATFORMS', '')}: {reason}; install "
            "that platform's JAX, or unset JAX_PLATFORMS"
        ) from error


def _processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """The CPU's model and widest vectors, which decide in which order XLA sums."""
    fields: dict[str, str] = {}
    with contextlib.suppress(OSError):  # the file exists only on Linux
        for line in cpuinfo.read_text().splitlines():
            name, _, value = line.partition(":")
            fields.setdefault(name.strip(), value.strip())
    model = fields.get("model name") or platform.machine()
    flags = fields.get("flags", "").split()
    vectors = [flag for flag in ("avx512f", "avx2") if flag in flags]
    return ", ".join([model, *vectors[:1]])


def _cores() -> int:
    """The number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _free_host_memory() -> float | None:
    """Free bytes of the machine or its container; None on systems other than Linux."""
    limits = []
    with contextlib.suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        line = next(line for line in lines if line.startswith("MemAvailable:"))
        limits.append(1024.0 * int(line.split()[1]))
    group = Path("/sys/fs/cgroup")
    with contextlib.suppress(OSError, ValueError):  # "max" means no limit
        limit = int((group / "memory.max").read_text())
        limits.append(float(limit - int((group / "memory.current").read_text())))
    return min(limits, default=None)
