"""Small runs on disk that are loaded, rendered and exported, with made-up states."""

import functools

import jax
import numpy as np
import session_cases

from vagram_jax import envs, fit, mbpo, schedules
from vagram_jax.dynamics import DynamicsConfig
from vagram_jax.run import devices, grid, loop, states
from vagram_jax.storage import checkpoint, results

ENV = envs.EnvConfig(env="pendulum", episode_length=12)
CONFIG = session_cases.CONFIG
# With a model, of which two of three members are elites.
WITH_MODEL = CONFIG.replace(
    loss="mse",
    real_fraction=schedules.constant(0.5),
    dynamics=DynamicsConfig(
        hidden=(), num_members=3, num_elites=2, head="deterministic"
    ),
    fit=fit.FitConfig(max_epochs=1),
)
# The first seed is not 0, so that a seed can't be confused with its index.
RUN = loop.RunConfig(num_seeds=2, first_seed=3, total_steps=14, eval_episodes=1)


def create(root, env=ENV, run=RUN, config=CONFIG):
    """The folder of a run without a checkpoint, as the commands make it."""
    name = grid.loss_label(config)
    spec = grid.RunSpec(name, {"loss": name}, env, config, run)
    return results.create_run(root, "study", spec.name, spec.settings)


def save(folder, arrays, step, run=RUN):
    """Saves all seeds as training does."""
    rows = {name: array[: run.num_seeds] for name, array in arrays.items()}
    checkpoint.save(checkpoint.Piece(folder, loop.seeds_of(run), rows), step)


@functools.cache
def _shapes(env, run, config):
    def init():
        keys = jax.random.split(jax.random.key(0), run.num_seeds)
        make = functools.partial(mbpo.init, env=envs.from_config(env), config=config)
        return jax.tree.map(devices.without_keys, jax.vmap(make)(keys))

    return states.named(jax.eval_shape(init))


def drawn(step, env=ENV, run=RUN, seed=0, config=CONFIG):
    """Random arrays for all seeds, which are alive at a step."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: rng.normal(size=shape.shape).astype(shape.dtype)
        for name, shape in _shapes(env, run, config).items()
    }
    arrays[".env_steps"][:], arrays[".diverged_at"][:] = step, -1
    members = np.arange(config.dynamics.num_members)
    arrays[".dynamics.elites"][:] = members[-config.dynamics.num_elites :]
    return arrays


def saved_with_model(root):
    """A run with a model that was saved at step 11."""
    folder = create(root, config=WITH_MODEL)
    save(folder, drawn(11, config=WITH_MODEL), 11)
    return folder
