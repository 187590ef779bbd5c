"""Small runs on disk whose policies are loaded and rendered, with made-up states."""

import functools

import jax
import numpy as np
import session_cases

from vagram_jax import envs, mbpo
from vagram_jax.run import devices, grid, loop, states
from vagram_jax.storage import checkpoint, results

ENV = envs.EnvConfig(env="pendulum", episode_length=12)
CONFIG = session_cases.CONFIG
# The first seed is not 0, so that a seed can't be confused with its index.
RUN = loop.RunConfig(num_seeds=2, first_seed=3, total_steps=14, eval_episodes=1)


def create(root, env=ENV, run=RUN):
    """The folder of a run without a checkpoint, as the commands make it."""
    spec = grid.RunSpec("sac", {"loss": "sac"}, env, CONFIG, run)
    return results.create_run(root, "study", spec.name, spec.settings)


def save(folder, arrays, step, run=RUN):
    """Saves all seeds as training does."""
    rows = {name: array[: run.num_seeds] for name, array in arrays.items()}
    checkpoint.save(checkpoint.Piece(folder, loop.seeds_of(run), rows), step)


@functools.cache
def _shapes(env, run):
    def init():
        keys = jax.random.split(jax.random.key(0), run.num_seeds)
        make = functools.partial(mbpo.init, env=envs.from_config(env), config=CONFIG)
        return jax.tree.map(devices.without_keys, jax.vmap(make)(keys))

    return states.named(jax.eval_shape(init))


def drawn(step, env=ENV, run=RUN, seed=0):
    """Random arrays for all seeds, which are alive at a step."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: rng.normal(size=shape.shape).astype(shape.dtype)
        for name, shape in _shapes(env, run).items()
    }
    arrays[".env_steps"][:], arrays[".diverged_at"][:] = step, -1
    return arrays
