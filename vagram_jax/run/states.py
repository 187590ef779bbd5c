"""Converts training states to the named NumPy arrays of a checkpoint, and back.

Names such as `.agent.actor['params']` are the paths of a pytree's leaves. Random keys
are stored as their data.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from vagram_jax.run import devices
from vagram_jax.storage.checkpoint import CheckpointError


def named(tree: Any) -> dict[str, Any]:
    """The leaves of a pytree by their paths, in order. None has no name."""
    leaves, _ = jax.tree_util.tree_flatten_with_path(tree)
    return {jax.tree_util.keystr(path): leaf for path, leaf in leaves}


def pack(states: Any) -> dict[str, np.ndarray]:
    """Copies the states of this process's lanes to the host.

    Args:
      states: a pytree of arrays of all lanes, random keys included.

    Returns:
      Names, as from `named`, to `[own lanes, ...]`.
    """
    return {name: devices.fetch_own(leaf) for name, leaf in named(states).items()}


def unpack(arrays: Mapping[str, np.ndarray], shapes: Any, layout: devices.Layout):
    """Moves the arrays that `pack` returned to the devices.

    Args:
      arrays: names to arrays of this process's lanes.
      shapes: a pytree of `jax.ShapeDtypeStruct` of all lanes.
      layout: the devices.

    Returns:
      The states, a pytree like `shapes`.

    Raises:
      CheckpointError: as `arrange`.
    """

    def put(array, leaf):
        array = devices.put(array, layout, leaf.shape[0])
        if devices.is_key(leaf):
            wrap = jax.jit(jax.random.wrap_key_data, out_shardings=layout.sharding)
            array = wrap(array)
        return array

    return jax.tree.map(put, arrange(arrays, shapes), shapes)


def arrange(arrays: Mapping[str, np.ndarray], shapes: Any) -> Any:
    """Arranges named arrays as the pytree that they were packed from.

    Args:
      arrays: names to `[lanes, ...]`.
      shapes: a pytree of `jax.ShapeDtypeStruct`, `[any number of lanes, ...]`.

    Returns:
      A pytree like `shapes` of NumPy arrays, with the data of random keys.

    Raises:
      CheckpointError: names, types or shapes differ from those of `shapes`.
    """
    raw = named(jax.tree.map(lambda x: jax.eval_shape(devices.without_keys, x), shapes))
    expected = {name: (str(x.dtype), *x.shape[1:]) for name, x in raw.items()}
    given = {name: (str(x.dtype), *x.shape[1:]) for name, x in arrays.items()}
    if different := sorted(set(expected.items()) ^ set(given.items())):
        name = different[0][0]
        raise CheckpointError(
            f"checkpoint: {name} is {given.get(name, 'missing')}, this run has "
            f"{expected.get(name, 'none')}; {len({n for n, _ in different})} arrays "
            "differ; resume with the settings that the checkpoint was made with"
        )
    return jax.tree.unflatten(jax.tree.structure(shapes), [arrays[x] for x in raw])
