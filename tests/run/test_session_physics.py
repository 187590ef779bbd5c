"""Training on a simulation that breaks down: it is dropped, counted, and left behind.

Compiling is nearly all of the time, so all runs share their programs.
"""

import itertools

import mujoco.batch
import numpy as np
import pytest
import session_cases as cases

from vagram_jax import envs
from vagram_jax.run import runner, session
from vagram_jax.storage import checkpoint

WARMUP, EPOCH, LAST = 10, 5, 25
LANE = 1
# In the midst of an episode, in its first step, and in the steps of several epochs.
BREAKS = (3, 4, 12, 13, 14, 22)
RUN = cases.RUN.replace(total_steps=LAST, eval_episodes=2)
CONFIG = cases.CONFIG.replace(
    warmup_steps=WARMUP, steps_per_epoch=EPOCH, replay_capacity=LAST
)
ENV = envs.make("inverted_pendulum", physics="c", episode_length=6)


def train(folder, breaks=(), in_evaluations=False):
    """Trains four seeds; at these steps, a velocity of one seed is out of bounds."""
    steps, original = itertools.count(1), mujoco.batch.Batch.step
    size = cases.SEEDS * (RUN.eval_episodes if in_evaluations else 1)

    def step(batch, **options):
        if batch.nsim == size and next(steps) in breaks:
            batch.qvel[LANE, 0] = 1e20
        original(batch, **options)

    job = session.Job(folder, "inverted_pendulum", CONFIG)
    with pytest.MonkeyPatch.context() as patch, session.owning([folder]):
        patch.setattr(runner, "compiled", cases.compiled_once)
        patch.setattr(mujoco.batch.Batch, "step", step)
        session.train_to_files(RUN, [job], ENV, keeping=session.Keeping(), tell=str)
    # Each step was one call for all seeds, so that they were counted right.
    assert in_evaluations or next(steps) == LAST + 1
    return folder


@pytest.fixture(scope="module")
def calm(tmp_path_factory):
    """A run in which nothing breaks down."""
    return train(tmp_path_factory.mktemp("calm"))


@pytest.fixture(scope="module")
def shaken(tmp_path_factory):
    """A run in which one seed's simulation breaks down again and again."""
    return train(tmp_path_factory.mktemp("shaken"), BREAKS)


def rows(folder, of_lane=True):
    found = cases.table(folder)
    return [row for row in found if (row["seed"] == LANE) == of_lane]


def state(folder, step=LAST, seeds=(LANE,)):
    """What the checkpoint of a step holds of some seeds."""
    return checkpoint.load(folder, step, seeds)


def test_the_table_counts_each_divergence_of_the_seed_and_no_other(calm, shaken):
    for row in rows(shaken):
        assert row["dropped"] == sum(step <= row["env_steps"] for step in BREAKS)
    quiet = rows(shaken, of_lane=False) + cases.table(calm)
    assert {row["dropped"] for row in quiet} == {0}


def test_nothing_that_diverged_is_stored(shaken):
    found = state(shaken)
    assert found[".replay.size"] == LAST - len(BREAKS)
    fields = {name: x for name, x in found.items() if name.startswith(".replay.data")}
    assert len(fields) == 6
    for name, field in fields.items():
        assert np.isfinite(field).all(), name
    # A cart that is slow, and not one with MuJoCo's number put back.
    assert np.abs(fields[".replay.data.next_obs"]).max() < 100


def test_the_episode_after_a_divergence_is_a_new_one(calm, shaken):
    """What is stored after it begins near the upright start, and goes on from there."""
    data = {
        name: state(shaken)[f".replay.data.{name}"][0, : LAST - len(BREAKS)]
        for name in ("obs", "next_obs", "terminated", "truncated")
    }
    goes_on = (data["next_obs"][:-1] == data["obs"][1:]).all(axis=1)
    ended = (data["terminated"] | data["truncated"])[:-1]
    stored = [step for step in range(1, LAST + 1) if step not in BREAKS]
    cut = np.diff(stored) > 1  # a step between two that are stored was dropped
    np.testing.assert_array_equal(goes_on, ~(ended | cut))
    begins = data["obs"][1:][~goes_on]
    assert np.abs(begins).max() < 0.011  # the noise of a start


def test_training_goes_on_after_divergences(shaken):
    before, after = (state(shaken, step) for step in (WARMUP + 2 * EPOCH, LAST))
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


def test_the_other_seeds_do_not_notice(calm, shaken):
    others = [seed for seed in range(cases.SEEDS) if seed != LANE]
    cases.assert_same_states(state(shaken, seeds=others), state(calm, seeds=others))
    assert rows(shaken, of_lane=False) == rows(calm, of_lane=False)
    assert rows(shaken) != rows(calm)


def test_a_divergence_in_an_evaluation_ends_its_episode_alone(calm, tmp_path):
    found = train(tmp_path, breaks=(2,), in_evaluations=True)
    cases.assert_same_states(
        state(found, seeds=range(cases.SEEDS)), state(calm, seeds=range(cases.SEEDS))
    )
    told, wanted = cases.table(found), cases.table(calm)
    differ = [one != other for one, other in zip(told, wanted, strict=True)]
    # The first evaluation of one seed: of two episodes, one has a single step.
    assert sum(differ) == 1
    (one, other) = told[differ.index(True)], wanted[differ.index(True)]
    assert one["env_steps"] == WARMUP
    assert 0 < one["return"] < other["return"]
    assert one["dropped"] == 0
