"""Small runs on disk whose policies are loaded and watched, and how to save them."""

import functools

import jax
import numpy as np

from vagram_jax import envs, sac, training
from vagram_jax.cli import launch
from vagram_jax.run import devices, runner
from vagram_jax.storage import checkpoint, results

ENV = envs.EnvConfig(env="pendulum", episode_length=12)
# Plain SAC without hidden layers compiles fastest.
CONFIG = training.MBPOConfig(
    loss=training.NO_MODEL,
    sac=sac.SACConfig(hidden=()),
    batch_size=4,
    updates_per_step=1,
    steps_per_epoch=3,
    warmup_steps=8,
    real_fraction=(1.0,),
    replay_capacity=20,
)
# Seeds that are no indices, so that the one can't stand for the other.
RUN = runner.RunConfig(num_seeds=2, first_seed=3, total_steps=14, eval_episodes=1)


def create(root, env=ENV, run=RUN):
    """The folder of a run without a checkpoint, as the commands make it."""
    settings = launch.settings_of(env, CONFIG, run)
    return results.create_run(root, "study", "sac", settings)


def save(folder, arrays, step, run=RUN):
    """Saves all seeds as training does."""
    rows = {name: array[: run.num_seeds] for name, array in arrays.items()}
    checkpoint.save(checkpoint.Piece(folder, runner.seeds_of(run), rows), step)


@functools.cache
def _shapes(env, run):
    def init():
        keys = jax.random.split(jax.random.key(0), run.num_seeds)
        make = functools.partial(
            training.init, env=envs.from_config(env), config=CONFIG
        )
        return jax.tree.map(devices.without_keys, jax.vmap(make)(keys))

    return checkpoint.named(jax.eval_shape(init))


def drawn(step, env=ENV, run=RUN, seed=0):
    """The arrays of all seeds, alive at a step, with numbers out of nowhere."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: rng.normal(size=shape.shape).astype(shape.dtype)
        for name, shape in _shapes(env, run).items()
    }
    arrays[".env_steps"][:], arrays[".diverged_at"][:] = step, -1
    return arrays
