"""Training on a simulation that diverges: its transitions are dropped and counted."""

import itertools
import math

import mujoco.batch
import numpy as np
import pytest
import session_cases as cases
from session_cases import programs_once

from vagram_jax import envs
from vagram_jax.storage import checkpoint

__all__ = ["programs_once"]

WARM_UP, EPOCH, LAST = 10, 5, 25
SEED = 1
# In the middle of an episode, in its first step, and in the steps of several epochs.
BREAKS = (3, 4, 12, 13, 14, 22)
RUN = cases.RUN.replace(total_steps=LAST)
CONFIG = cases.CONFIG.replace(
    warmup_steps=WARM_UP, steps_per_epoch=EPOCH, replay_capacity=LAST
)
ENV_CONFIG = envs.EnvConfig(env="inverted_pendulum", physics="c", episode_length=6)


def train(root, breaks=(), in_evaluations=False):
    """Trains two seeds; at these steps a velocity of one seed is out of bounds."""
    steps, original = itertools.count(1), mujoco.batch.Batch.step
    size = cases.SEEDS * (RUN.eval_episodes if in_evaluations else 1)

    def step(batch, **options):
        if batch.nsim == size and next(steps) in breaks:
            batch.qvel[SEED, 0] = 1e20
        original(batch, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mujoco.batch.Batch, "step", step)
        cases.train(root, cases.spec("run", CONFIG, RUN, ENV_CONFIG))
    # Each step was one call for all seeds, so the steps were counted correctly.
    assert in_evaluations or next(steps) == LAST + 1
    return root


@pytest.fixture(scope="module")
def calm(tmp_path_factory, programs_once):
    """A run in which nothing diverges."""
    return train(tmp_path_factory.mktemp("calm"))


@pytest.fixture(scope="module")
def shaken(tmp_path_factory, programs_once):
    """A run in which the simulation of one seed diverges again and again."""
    return train(tmp_path_factory.mktemp("shaken"), BREAKS)


def rows(root, of_seed=True):
    return [row for row in cases.table(root) if (row["seed"] == SEED) == of_seed]


def state(root, step=LAST, seeds=(SEED,)):
    """The checkpoint of some seeds."""
    return checkpoint.load(cases.folder_of(root), step, seeds)


def test_the_table_counts_the_divergences_of_each_seed(calm, shaken):
    for row in rows(shaken):
        assert row["dropped"] == sum(step <= row["env_steps"] for step in BREAKS)
    others = rows(shaken, of_seed=False) + cases.table(calm)
    assert {row["dropped"] for row in others} == {0}


def test_no_transition_that_diverged_is_stored(shaken):
    arrays = state(shaken)
    assert arrays[".replay.size"] == LAST - len(BREAKS)
    fields = {name: x for name, x in arrays.items() if name.startswith(".replay.data")}
    assert len(fields) == 6
    for name, field in fields.items():
        assert np.isfinite(field).all(), name
    # The velocity is that of a cart and not the bound of MuJoCo.
    assert np.abs(fields[".replay.data.next_obs"]).max() < 100


def test_the_episode_after_a_divergence_starts_anew(shaken):
    data = {
        name: state(shaken)[f".replay.data.{name}"][0, : LAST - len(BREAKS)]
        for name in ("obs", "next_obs", "terminated", "truncated")
    }
    continues = (data["next_obs"][:-1] == data["obs"][1:]).all(axis=1)
    ended = (data["terminated"] | data["truncated"])[:-1]
    stored = [step for step in range(1, LAST + 1) if step not in BREAKS]
    dropped_between = np.diff(stored) > 1
    np.testing.assert_array_equal(continues, ~(ended | dropped_between))
    starts = data["obs"][1:][~continues]
    assert np.abs(starts).max() < 0.011  # the noise of a start


def test_training_continues_after_divergences(shaken):
    before, after = (state(shaken, step) for step in (WARM_UP + 2 * EPOCH, LAST))
    learned = [name for name in after if name.startswith(".agent")]
    for name in learned:
        assert np.isfinite(after[name]).all(), name
    for part in (".agent.actor", ".agent.critics"):
        weights = [name for name in learned if name.startswith(part)]
        assert any((after[name] != before[name]).any() for name in weights)
    for row in rows(shaken):
        assert row["diverged_at"] is None
        assert np.isfinite(row["return"])
    assert after[".alive"].all()


def test_the_other_seed_has_the_same_bits(calm, shaken):
    other = [seed for seed in range(cases.SEEDS) if seed != SEED]
    cases.assert_same_states(state(shaken, seeds=other), state(calm, seeds=other))
    assert rows(shaken, of_seed=False) == rows(calm, of_seed=False)
    assert rows(shaken) != rows(calm)


def test_a_divergence_in_an_evaluation_ends_only_its_episode(calm, tmp_path):
    broken = train(tmp_path, breaks=(2,), in_evaluations=True)
    cases.assert_same_states(
        state(broken, seeds=range(cases.SEEDS)), state(calm, seeds=range(cases.SEEDS))
    )
    pairs = zip(cases.table(broken), cases.table(calm), strict=True)
    # Of the first evaluation of one seed, one of two episodes has a single step.
    ((row, expected),) = [pair for pair in pairs if pair[0] != pair[1]]
    assert row["env_steps"] == WARM_UP
    # An episode that isn't finite has no return, and so has their mean.
    assert math.isnan(row["return"])
    assert math.isfinite(expected["return"])
    assert row["dropped"] == 0
