"""What the tests of the loop share: one small task, one small config, few programs.

Compiling is nearly all of their time, so tests differ in numbers and not in shapes.
"""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np

from vagram_jax import dynamics, envs, fit, imagine, mbpo, sac, training
from vagram_jax.run import devices, loop

NUM_SEEDS, EPISODE_LENGTH, EVAL_EPISODES = 8, 4, 2
WARMUP, STEPS, UPDATES, ROLLOUTS = 10, 5, 2, 2

CONFIG = training.MBPOConfig(
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
    real_fraction=(0.5,),
    replay_capacity=50,
)
PLAIN_SAC = CONFIG.replace(loss=training.NO_MODEL, real_fraction=(1.0,))


class Walk:
    """Counts its steps and walks in a plane; where it stands says whether it ends.

    Observation: the number of steps so far and a position. See `ends` for the ends,
    which come often whatever the policy does.

    Args:
      nan_at: the reward of this step of each episode is NaN; 0 for none. An array
        will do, so that it need not be compiled in.
    """

    observation_size = 3
    action_size = 2
    episode_length = EPISODE_LENGTH
    traces = 0  # of `step`

    def __init__(self, nan_at=0):
        self._nan_at = nan_at

    def reset(self, key):
        """A random position; the rest of the key is for noise."""
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
        """A noisy step; standing far from the origin costs."""
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
        """As `step` ends for good."""
        done, truncation = ends(next_obs)
        return (done & ~truncation) | ~jnp.all(jnp.isfinite(next_obs))


def ends(obs):
    """Whether a `Walk` is done there, and whether it is cut, in JAX or in NumPy.

    Where the first coordinate is in one of six stripes, and the second.
    """
    stripe = obs[..., 1:] * 10.0 // 1.0 % 6.0
    return stripe[..., 0] == 0.0, stripe[..., 1] == 0.0


WALK = Walk()
PROGRAMS = loop.make_programs(
    loop.RunConfig(eval_episodes=EVAL_EPISODES), WALK, devices.Layout()
)
"""What a run of `NUM_SEEDS` seeds is made of."""


def _around(nan_at):
    return {"env": Walk(nan_at), "episode_length": EPISODE_LENGTH}


@jax.jit
def _start(key, nan_at, config):
    state = training.init(key, env=Walk(nan_at), config=config)
    return mbpo.warm_up(state, config=config, **_around(nan_at))


@jax.jit
def _epoch(state, nan_at, config):
    return mbpo.epoch(state, config=config, **_around(nan_at))


@contextlib.contextmanager
def no_key_twice():
    """Lets JAX look for keys that are used twice."""
    try:
        with jax.debug_key_reuse(True):
            yield
    except jax.errors.KeyReuseError as error:
        # Its frames hold whole programs, which pytest would take minutes to print.
        raise AssertionError(f"a key is used twice: {error}") from None


def start(seed=0, config=CONFIG, nan_at=0):
    """One seed after its warm-up."""
    with no_key_twice():
        return _start(jax.random.key(seed), nan_at, config)


def epoch(state, config=CONFIG, nan_at=0):
    """One seed an epoch on, and metrics; it uses up `state`'s keys, see `fresh`."""
    with no_key_twice():
        return _epoch(state, nan_at, config)


def run(seed=0, config=CONFIG, nan_at=0, epochs=2):
    """One seed after its warm-up and some epochs."""
    state = start(seed, config, nan_at)
    for _ in range(epochs):
        state, _ = epoch(state, config, nan_at)
    return state


@functools.cache
def start_seeds(seeds=tuple(range(NUM_SEEDS))):
    """Several seeds after their warm-up; not to be given away, see `epoch_seeds`."""
    return loop.start(PROGRAMS, lanes(seeds))


def epoch_seeds(states, config=CONFIG, epochs=1):
    """Several seeds some epochs on, and the last metrics; `states` stays valid."""
    # An epoch has its keys from the states, so the numbers of the seeds don't matter.
    own = lanes(range(len(states.alive)), config)
    for _ in range(epochs):
        states, metrics = loop.epoch(PROGRAMS, fresh(states), own)
    return states, metrics


def lanes(seeds=tuple(range(NUM_SEEDS)), config=CONFIG):
    """Seeds that all have one config, where a run has them: on their devices."""
    return placed(loop.stack_lanes(seeds, [config] * len(seeds)))


def placed(lanes):
    """Lanes on their devices; elsewhere, the programs would be compiled anew."""
    return devices.put(lanes, devices.Layout(), len(lanes.seeds))


def is_key(leaf):
    return jnp.issubdtype(jnp.asarray(leaf).dtype, jax.dtypes.prng_key)


def fresh(tree):
    """The same values in memory of their own, and no key of them used yet."""
    return jax.tree.map(
        lambda x: jax.random.clone(x) if is_key(x) else jnp.array(x), tree
    )


def bits(tree):
    """Everything as NumPy arrays, keys too."""
    return jax.tree.map(
        lambda x: np.array(
            jax.random.key_data(jax.random.clone(x)) if is_key(x) else x
        ),
        tree,
    )


def assert_identical(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, bits(found), bits(wanted))


def row(tree, index):
    """One seed, or several, of everything."""
    return jax.tree.map(lambda x: x[index], bits(tree))


def with_row(states, index, change):
    """The states with `change` applied to one seed's part of each leaf."""
    return jax.tree.map(lambda x: x.at[index].set(change(x[index])), states)


def stored(state):
    """The transitions of the real buffer, in NumPy."""
    size = int(state.replay.size)
    return jax.tree.map(lambda x: np.asarray(x)[:size], state.replay.data)
