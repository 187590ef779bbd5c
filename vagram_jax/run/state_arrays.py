"""Converts training states to named NumPy arrays, which checkpoints hold, and back."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from vagram_jax.run import devices
from vagram_jax.storage.checkpoint import Arrays, CheckpointError


def pack(states: Any) -> dict[str, np.ndarray]:
    """Copies the states of this process's lanes to the host as named arrays.

    Args:
      states: a pytree of arrays `[lanes, ...]`; random keys are stored as their data.

    Returns:
      Names, as given by `named`, to `[lanes of this process, ...]`.
    """
    return {name: devices.fetch_own(leaf) for name, leaf in named(states).items()}


def named(states: Any) -> dict[str, Any]:
    """The leaves of a pytree by name, such as `.agent.actor['params']`, in tree order.

    A field that is None has no name.
    """
    leaves, _ = jax.tree_util.tree_flatten_with_path(states)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def unpack(arrays: Arrays, shapes: Any, layout: devices.Layout) -> Any:
    """Rebuilds the states that `pack` converted, and puts them on their devices.

    Args:
      arrays: the arrays of this process's lanes.
      shapes: a pytree of `jax.ShapeDtypeStruct`, `[lanes of all processes, ...]`.
      layout: where lanes run.

    Returns:
      A pytree like `shapes`.

    Raises:
      CheckpointError: names, shapes or types of the arrays differ from `shapes`.
    """

    def to_device(array, leaf):
        array = devices.put(array, layout, leaf.shape[0])
        if devices.is_key(leaf):
            wrap = jax.jit(jax.random.wrap_key_data, out_shardings=layout.sharding)
            array = wrap(array)
        return array

    return jax.tree.map(to_device, arrange(arrays, shapes), shapes)


def arrange(arrays: Arrays, shapes: Any) -> Any:
    """Arranges arrays as the pytree that they were packed from, still on the host.

    Args:
      arrays: names to `[lanes, ...]`.
      shapes: a pytree of `jax.ShapeDtypeStruct`; the number of lanes may differ.

    Returns:
      A pytree like `shapes` of NumPy arrays; a random key is its data.

    Raises:
      CheckpointError: names, shapes or types of the arrays differ from `shapes`.
    """
    data = jax.tree.map(lambda x: jax.eval_shape(devices.without_keys, x), shapes)
    expected = _kinds(named(data))
    actual = _kinds(arrays)
    if different := sorted(set(expected.items()) ^ set(actual.items())):
        name = different[0][0]
        raise CheckpointError(
            f"checkpoint: {name} is {actual.get(name, 'missing')}, this run has "
            f"{expected.get(name, 'none')}; {len({n for n, _ in different})} arrays "
            "differ; resume with the settings that the run was started with"
        )
    leaves = [arrays[name] for name in expected]
    return jax.tree.unflatten(jax.tree.structure(shapes), leaves)


def _kinds(arrays: Any) -> dict[str, tuple[Any, ...]]:
    """The type and the shape of each array, without the lane axis."""
    return {name: (str(x.dtype), *x.shape[1:]) for name, x in arrays.items()}
