"""Builders for the tests of `mbpo`: one small task, one small config, few programs.

Tests differ in numbers and not in shapes, because compiling takes most of their time.
"""

import contextlib
import functools

import emitters
import jax
import jax.numpy as jnp
import numpy as np

from vagram_jax import dynamics, envs, fit, imagine, mbpo, sac, schedules

NUM_SEEDS, EPISODE_LENGTH = 8, 4
WARMUP, STEPS, UPDATES, ROLLOUTS = 10, 5, 2, 2

CONFIG = mbpo.MBPOConfig(
    loss="vagram",
    dynamics=dynamics.DynamicsConfig(
        hidden=(4,), num_members=2, num_elites=1, head="deterministic"
    ),
    fit=fit.FitConfig(batch_size=8, max_epochs=2, patience=1),
    imagine=imagine.ImagineConfig(rollouts_per_step=ROLLOUTS),
    sac=sac.SACConfig(hidden=(4,)),
    batch_size=8,
    updates_per_step=UPDATES,
    steps_per_epoch=STEPS,
    warmup_steps=WARMUP,
    real_fraction=schedules.constant(0.5),
    replay_capacity=50,
)
PLAIN_SAC = CONFIG.replace(loss=mbpo.NO_MODEL, real_fraction=schedules.constant(1.0))


class Walk:
    """A walk in the plane, in which the position decides whether an episode ends.

    The observation is the number of steps and the position. Episodes end often,
    whatever the policy does, see `ends`.

    Args:
      nan_at: the step of each episode whose reward is NaN, 0 for none; it may be an
        array, so that it isn't compiled in.
    """

    observation_size = 3
    action_size = 2
    episode_length = EPISODE_LENGTH
    traces = 0  # of `step`

    def __init__(self, nan_at=0):
        self._nan_at = nan_at

    def reset(self, key):
        """Starts at a random position."""
        key, key_start = jax.random.split(key)
        position = jax.random.uniform(key_start, (2,), minval=-1.0)
        return envs.State(
            pipeline_state=key,
            obs=jnp.concatenate([jnp.zeros(1), position]),
            reward=jnp.zeros(()),
            done=jnp.zeros(()),
            metrics={},
            info={"truncation": jnp.zeros(())},
        )

    def step(self, state, action):
        """Takes a noisy step; the reward is minus the squared distance from 0."""
        Walk.traces += 1
        key, key_noise = jax.random.split(state.pipeline_state)
        count, position = state.obs[0] + 1, state.obs[1:]
        position = position + 0.5 * action + 0.1 * jax.random.normal(key_noise, (2,))
        cost = jnp.sum(jnp.square(position))
        obs = jnp.concatenate([count[None], position])
        done, truncation = jnp.float32(ends(obs))
        return state.replace(
            pipeline_state=key,
            obs=obs,
            reward=jnp.where(count == self._nan_at, jnp.nan, -cost),
            done=done,
            info={"truncation": truncation},
        )

    def termination(self, obs, action, next_obs):
        """Returns whether `step` terminates there."""
        done, truncation = ends(next_obs)
        return (done & ~truncation) | ~jnp.all(jnp.isfinite(next_obs))


def ends(obs):
    """Returns whether a `Walk` is done there, and whether it is cut.

    It is done where the first coordinate is in one of six stripes, and cut where the
    second one is. It works on JAX and NumPy arrays.
    """
    stripe = obs[..., 1:] * 10.0 // 1.0 % 6.0
    return stripe[..., 0] == 0.0, stripe[..., 1] == 0.0


WALK = Walk()


def start_one(key, nan_at, config):
    """Returns the state of one seed after its warm-up, not compiled."""
    env = Walk(nan_at)
    return mbpo.warm_up(mbpo.init(key, env=env, config=config), env=env, config=config)


def epoch_one(state, nan_at, config):
    """Runs one epoch of one seed, not compiled."""
    return mbpo.epoch(state, env=Walk(nan_at), config=config)


def _improve_one(state, fitted, nan_at, config):
    if config.loss != mbpo.NO_MODEL:
        config = config.replace(loss=CONFIG.loss)  # one program for all losses
    return mbpo.improve_policy(state, fitted, env=Walk(nan_at), config=config)


_start, _fit, _improve = map(jax.jit, (start_one, mbpo.fit_model, _improve_one))
_improve_with_emitters = emitters.jit(_improve_one)
_start_seeds = jax.jit(jax.vmap(start_one, in_axes=(0, None, None)))
_epoch_seeds = jax.jit(jax.vmap(epoch_one, in_axes=(0, None, 0)))


@contextlib.contextmanager
def no_key_twice():
    """Makes JAX check that no key is used twice."""
    try:
        with jax.debug_key_reuse(True):
            yield
    except jax.errors.KeyReuseError as error:
        # Its frames hold whole programs, which pytest would take minutes to print.
        raise AssertionError(f"a key is used twice: {error}") from None


def start(seed=0, config=CONFIG, nan_at=0):
    """Returns the state of one seed after its warm-up."""
    with no_key_twice():
        return _start(jax.random.key(seed), nan_at, config)


def epoch(state, config=CONFIG, nan_at=0, improve=_improve):
    """Runs one epoch of one seed; it uses up the keys of `state`, see `fresh`."""
    with no_key_twice():
        return mbpo.epoch(
            state,
            env=None,
            config=config,
            fit_model=_fit,
            improve_policy=lambda *x, **_: improve(*x, nan_at, config),
        )


def run(seed=0, config=CONFIG, nan_at=0, epochs=2, improve=_improve):
    """Returns the state of one seed after its warm-up and some epochs."""
    state = start(seed, config, nan_at)
    for _ in range(epochs):
        state, _ = epoch(state, config, nan_at, improve)
    return state


def run_with_emitters(config):
    """As `run`, with agents whose bits can be compared with those of another config."""
    return run(config=config, improve=_improve_with_emitters)


@functools.cache
def start_seeds(seeds=tuple(range(NUM_SEEDS))):
    """Returns the states of several seeds after their warm-up."""
    keys = jax.vmap(jax.random.key)(jnp.uint32(seeds))
    return _start_seeds(keys, 0, CONFIG)


def epoch_seeds(states, config=CONFIG, epochs=1):
    """Runs some epochs of several seeds, whose states all have one config."""
    configs = stacked([config] * len(states.alive))
    return epoch_lanes(states, configs, epochs)


def epoch_lanes(states, configs, epochs=1):
    """Runs some epochs of several seeds, each with its own numbers of the config."""
    for _ in range(epochs):
        states, metrics = _epoch_seeds(fresh(states), 0, configs)
    return states, metrics


def stacked(configs):
    """Returns one config whose numbers have a leading axis, one entry per config."""
    return jax.tree.map(lambda *x: jnp.float32(x), *configs)


def is_key(leaf):
    return jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)


def fresh(tree):
    """Copies everything, with keys that count as unused."""
    return jax.tree.map(
        lambda x: jax.random.clone(x) if is_key(x) else jnp.array(x), tree
    )


def bits(tree):
    """Converts everything to NumPy arrays, keys too."""
    return jax.tree.map(
        lambda x: np.array(
            jax.random.key_data(jax.random.clone(x)) if is_key(x) else x
        ),
        tree,
    )


def assert_identical(actual, expected):
    jax.tree.map(np.testing.assert_array_equal, bits(actual), bits(expected))


def row(tree, index):
    """Returns the part of one seed or of several."""
    return jax.tree.map(lambda x: x[index], bits(tree))


def with_row(states, index, change):
    """Applies `change` to one seed's part of each leaf."""
    return jax.tree.map(lambda x: x.at[index].set(change(x[index])), states)


def stored(state):
    """Returns the transitions of the real buffer as NumPy arrays."""
    size = int(state.replay.size)
    return jax.tree.map(lambda x: np.asarray(x)[:size], state.replay.data)
