"""The loop of one seed: what it stores, what it learns from, when it has diverged.

Runs of one seed are checked for reused keys, see `mbpo_cases`.
"""

import functools

import jax
import jax.numpy as jnp
import mbpo_cases as cases
import numpy as np
import pytest

from vagram_jax import divergence, dynamics, losses, mbpo, replay, sac, schedules
from vagram_jax.fit import DynamicsState
from vagram_jax.types import Transition

CONFIG, PLAIN_SAC = cases.CONFIG, cases.PLAIN_SAC
ALL_REAL = CONFIG.replace(real_fraction=schedules.constant(1.0))


def rows_of(ids, obs_dim=3, action_dim=2):
    """Transitions of which every number is the id of its row."""
    ids = jnp.asarray(ids, jnp.float32)
    return Transition(
        obs=jnp.tile(ids[:, None], obs_dim),
        action=jnp.tile(ids[:, None], action_dim),
        reward=ids,
        next_obs=jnp.tile(ids[:, None], obs_dim),
        terminated=ids % 2 == 1,
        truncated=ids % 2 == 0,
    )


def buffer_of(ids, capacity=10):
    empty = replay.init(obs_dim=3, action_dim=2, capacity=capacity)
    return jax.jit(replay.add)(empty, rows_of(ids), np.ones(len(ids), bool))


def state_with(**fields):
    """A state of which only some fields are ever looked at."""
    names = mbpo.MBPOState.__dataclass_fields__
    return mbpo.MBPOState(**(dict.fromkeys(names) | fields))


# --- The whole loop -------------------------------------------------------------------


def test_epoch_with_real_batches_only_trains_the_agent_of_plain_sac_bit_for_bit():
    with_model, without = map(cases.run_with_emitters, (ALL_REAL, PLAIN_SAC))
    for name in ("agent", "replay", "episode", "key", "env_steps", "dropped", "alive"):
        cases.assert_identical(getattr(with_model, name), getattr(without, name))


def test_epoch_with_imagined_batches_trains_a_different_agent():
    # Otherwise the test above would hold for any share of real rows.
    mixed, real = cases.run(epochs=1), cases.run(config=ALL_REAL, epochs=1)
    actual, other = (cases.bits(s.agent.critics) for s in (mixed, real))
    pairs = zip(jax.tree.leaves(actual), jax.tree.leaves(other), strict=True)
    assert not any(np.array_equal(*pair) for pair in pairs)


def test_epoch_is_a_function_of_its_state():
    state = cases.run(epochs=1)
    first = cases.epoch(cases.fresh(state))
    cases.assert_identical(cases.epoch(state), first)


def test_epoch_gives_each_stage_and_the_next_epoch_a_different_key(monkeypatch):
    # JAX's check loses sight of a key that `freeze_if_diverged` chooses.
    seen = []

    def stage(key, state, **_):
        seen.append(key)
        return state, {}

    def fit(key, model, *_, **__):
        seen.append(key)
        return model, {}

    monkeypatch.setattr(mbpo.fitting, "fit", fit)
    for name in ("add_imagined", "interact"):
        monkeypatch.setattr(mbpo, name, stage)
    monkeypatch.setattr(
        mbpo.divergence, "freeze_if_diverged", lambda old, new, *_, **__: new
    )
    monkeypatch.setattr(mbpo, "_errors_on_new", lambda *_, **__: {})
    state = cases.start().replace(key=jax.random.key(0))
    for _ in range(3):
        state, _ = mbpo.epoch(state, env=None, config=CONFIG)
        seen.append(state.key)
    assert len(np.unique(cases.bits(jnp.stack(seen)), axis=0)) == len(seen) == 12


def test_epoch_has_the_same_metrics_at_every_call():
    state, first = cases.epoch(cases.start())
    _, second = cases.epoch(state)
    assert set(first) == set(second)
    assert {name.partition("/")[0] for name in first} == {"model", "sac"}


def test_the_loop_depends_on_the_seed():
    first, second = (cases.bits(cases.run(seed, PLAIN_SAC)) for seed in (0, 1))
    assert not np.array_equal(first.replay.data.obs, second.replay.data.obs)
    assert not np.array_equal(first.key, second.key)


@pytest.mark.parametrize("algorithm", [CONFIG, PLAIN_SAC], ids=["vagram", "none"])
def test_env_steps_counts_warm_up_and_epochs(algorithm):
    state = cases.start(config=algorithm)
    for epochs in range(3):
        assert int(state.env_steps) == cases.WARMUP + epochs * cases.STEPS
        state, _ = cases.epoch(state, algorithm)


def test_the_agent_normalizes_by_the_buffer_at_the_start_of_an_epoch():
    config = CONFIG.replace(sac=CONFIG.sac.replace(normalize_obs=True))
    before = cases.start(config=config)
    after, _ = cases.epoch(before, config)
    rows = np.asarray(before.replay.data.obs)[: int(before.replay.size)]
    for state in (before, after):
        np.testing.assert_allclose(state.agent.obs_mean, rows.mean(axis=0), rtol=1e-5)
        np.testing.assert_allclose(state.agent.obs_std, rows.std(axis=0), rtol=1e-5)


def test_interact_updates_the_agent_after_each_step():
    state = cases.run(epochs=3)
    for optimizer in (state.agent.actor_opt, state.agent.critic_opt):
        assert int(optimizer[0].count) == 3 * cases.STEPS * cases.UPDATES


def test_warm_up_acts_uniformly():
    action = cases.stored(cases.start()).action
    assert action.shape == (cases.WARMUP, 2)
    assert np.all(np.abs(action) < 1.0)
    # The chance that none of twenty uniform numbers is in one of these is 2 * 0.75^20.
    assert action.min() < -0.5
    assert action.max() > 0.5


# --- What is stored -------------------------------------------------------------------


@functools.cache
def long_run(seed=0):
    return cases.stored(cases.run(seed, PLAIN_SAC, epochs=6))


def test_stored_successors_are_the_true_ones_at_the_ends_of_episodes():
    rows = long_run()
    np.testing.assert_array_equal(rows.next_obs[:, 0], rows.obs[:, 0] + 1)
    np.testing.assert_allclose(
        rows.reward, -np.sum(rows.next_obs[:, 1:] ** 2, axis=1), rtol=1e-6
    )


def test_stored_transitions_follow_each_other_until_an_episode_ends():
    rows = long_run()
    ended = (rows.terminated | rows.truncated)[:-1]
    starts = rows.obs[1:][ended]
    assert len(starts) > 5
    np.testing.assert_array_equal(rows.obs[1:][~ended], rows.next_obs[:-1][~ended])
    np.testing.assert_array_equal(starts[:, 0], 0.0)
    assert len(np.unique(starts, axis=0)) == len(starts)


def test_stored_flags_keep_termination_and_truncation_apart():
    runs = [long_run(seed) for seed in range(3)]
    rows = jax.tree.map(lambda *x: np.concatenate(x), *runs)
    ends, cuts = cases.ends(rows.next_obs)
    late = rows.next_obs[:, 0] == cases.EPISODE_LENGTH
    np.testing.assert_array_equal(rows.terminated, ends & ~cuts)
    np.testing.assert_array_equal(rows.truncated, cuts | (late & ~ends))
    # Each kind of end was met.
    assert rows.terminated.any()
    assert cuts.any()
    assert (late & ~ends & ~cuts).any()


@pytest.mark.parametrize("nan_at", [2, 3])
def test_a_transition_that_is_not_finite_is_dropped_and_counted(nan_at):
    state = cases.run(config=PLAIN_SAC, nan_at=nan_at)
    rows, steps = cases.stored(state), cases.WARMUP + 2 * cases.STEPS
    assert int(state.env_steps) == steps
    assert int(state.dropped) > 0
    assert int(state.dropped) + len(rows.reward) == steps
    assert np.all(np.isfinite(rows.reward))
    # The episode ends there, and the first step is all that it may have had.
    assert np.all(rows.next_obs[:, 0] < nan_at)


def test_a_seed_whose_first_steps_are_all_not_finite_is_frozen_without_data():
    state = cases.run(config=PLAIN_SAC, nan_at=1)
    assert (int(state.env_steps), int(state.dropped)) == (cases.WARMUP, cases.WARMUP)
    assert int(state.replay.size) == 0
    assert divergence.CAUSES[int(state.diverged_by)] == "environment"
    assert int(state.diverged_at) == cases.WARMUP + cases.STEPS


def test_training_continues_after_dropped_transitions():
    before = cases.start(config=PLAIN_SAC, nan_at=2)
    after, metrics = cases.epoch(before, PLAIN_SAC, nan_at=2)
    assert bool(after.alive)
    assert int(after.diverged_at) == -1
    assert all(np.all(np.isfinite(x)) for x in metrics.values())
    actor = [jax.tree.leaves(s.agent.actor) for s in (before, after)]
    assert not any(np.array_equal(*pair) for pair in zip(*actor, strict=True))


# --- The stages -----------------------------------------------------------------------


def recorded_fit(monkeypatch, state, **fields):
    """Runs `fit_model` with a fit that only records its arguments."""
    calls = []

    def record(key, model, data, value_fn, *, loss, config):
        calls.append((model, data, value_fn, loss))
        return model, {}

    monkeypatch.setattr(mbpo.fitting, "fit", record)
    mbpo.fit_model(state, config=CONFIG.replace(**fields))
    return calls[0]


@pytest.mark.parametrize(("step", "coef"), [(0, 0.5), (9, 0.5), (10, 0.0), (11, 0.0)])
def test_fit_model_takes_the_weights_of_the_current_step(monkeypatch, step, coef):
    step_down = schedules.Schedule(0.5, 0.0, 10.0, 10.0)
    state = cases.run(epochs=1).replace(env_steps=jnp.int32(step))
    _, data, _, loss = recorded_fit(
        monkeypatch, state, weights=CONFIG.weights.replace(mse_coef=step_down)
    )
    plain = losses.get("vagram").prepare(data.data, jnp.sum)
    actual = loss.prepare(data.data, jnp.sum)
    np.testing.assert_allclose(actual, plain + coef, rtol=1e-6)


def test_fit_model_passes_the_values_of_the_current_agent(monkeypatch):
    state = cases.run(epochs=1)
    model, data, value_fn, _ = recorded_fit(monkeypatch, state)
    values = sac.value_fn(state.agent, config=CONFIG.sac)(jnp.ones(3))
    cases.assert_identical(
        (model, data, value_fn(jnp.ones(3))), (state.dynamics, state.replay, values)
    )


@functools.partial(jax.jit, static_argnames="keep_epochs")
def _add_imagined(key, state, keep_epochs):
    options = {"keep_epochs": keep_epochs, "termination": "none"}
    algorithm = CONFIG.replace(imagine=CONFIG.imagine.replace(**options))
    return mbpo.add_imagined(key, state, env=cases.WALK, config=algorithm)


@pytest.mark.parametrize("keep_epochs", [1, 3])
def test_add_imagined_keeps_each_row_for_keep_epochs(keep_epochs):
    per_epoch = cases.ROLLOUTS * cases.STEPS
    state = cases.start().replace(
        imagined=replay.init(obs_dim=3, action_dim=2, capacity=per_epoch * keep_epochs)
    )
    for epoch in range(1, 6):
        # The rows begin where real ones do, and these say which epoch it is.
        state = state.replace(replay=buffer_of([epoch] * 10, capacity=50))
        state, _ = _add_imagined(jax.random.key(epoch), state, keep_epochs)
        held = np.asarray(state.imagined.data.obs[: int(state.imagined.size), 0])
        kept = range(max(1, epoch - keep_epochs + 1), epoch + 1)
        assert sorted(held) == sorted([*kept] * per_epoch)


def test_init_has_room_for_the_imagined_rows_of_keep_epochs():
    options = {
        "horizon": schedules.Schedule(1, 4, 0, 10),
        "keep_epochs": 3,
        "rollouts_per_step": 7,
    }
    algorithm = CONFIG.replace(imagine=CONFIG.imagine.replace(**options))
    init = functools.partial(mbpo.init, env=cases.WALK, config=algorithm)
    state = jax.eval_shape(init, jax.random.key(0))
    assert state.imagined.capacity == 7 * cases.STEPS * 4 * 3


def test_add_imagined_takes_its_horizon_from_the_schedule():
    options = {"horizon": schedules.Schedule(1, 3, 10, 20), "termination": "none"}
    algorithm = CONFIG.replace(imagine=CONFIG.imagine.replace(**options))
    state = cases.start().replace(
        imagined=replay.init(obs_dim=3, action_dim=2, capacity=30)
    )
    add = jax.jit(functools.partial(mbpo.add_imagined, env=cases.WALK))
    for step, horizon in [(0, 1), (10, 1), (15, 2), (20, 3), (99, 3)]:
        later = state.replace(env_steps=jnp.int32(step))
        actual, metrics = add(jax.random.key(0), later, config=algorithm)
        assert int(metrics["model/horizon"]) == horizon
        assert int(actual.imagined.size) == 10 * horizon
        assert float(metrics["model/valid"]) == pytest.approx(horizon / 3)


def test_add_imagined_starts_from_real_states():
    state, _ = _add_imagined(jax.random.key(0), cases.start(), 1)
    real = {tuple(obs) for obs in cases.stored(state).obs.tolist()}
    actual = {tuple(obs) for obs in state.imagined.data.obs.tolist()}
    assert actual <= real
    assert len(actual) > 1


def test_add_imagined_ends_rollouts_where_the_environment_does():
    state, seen = cases.start(), []
    for _ in range(4):
        state, _ = cases.epoch(state)
        seen.append(cases.bits(state.imagined.data))
    rows = jax.tree.map(lambda *x: np.concatenate(x), *seen)
    ends, cuts = cases.ends(rows.next_obs)
    np.testing.assert_array_equal(rows.terminated, ends & ~cuts)
    assert rows.terminated.any()
    assert not rows.truncated.any()


# --- Batches --------------------------------------------------------------------------

REAL, IMAGINED = range(10), range(100, 110)


@jax.jit
def _mixed(key, state, algorithm):
    return mbpo.mixed_batches(key, state, config=algorithm)


def mixed(fraction, step=0, num_imagined=10, seed=0, **options):
    imagined = buffer_of(IMAGINED).replace(size=jnp.int32(num_imagined))
    state = state_with(
        env_steps=jnp.int32(step), replay=buffer_of(REAL), imagined=imagined
    )
    if isinstance(fraction, float):
        fraction = schedules.constant(fraction)
    algorithm = CONFIG.replace(real_fraction=fraction, batch_size=10, **options)
    return _mixed(jax.random.key(seed), state, algorithm)


@pytest.mark.parametrize(
    ("fraction", "count"),
    [(0.0, 0), (0.04, 0), (0.06, 1), (0.5, 5), (0.74, 7), (1, 10)],
)
def test_mixed_batches_begin_with_the_exact_number_of_real_rows(fraction, count):
    reward = np.asarray(mixed(float(fraction)).reward)
    assert reward.shape == (cases.UPDATES, 10)
    np.testing.assert_array_equal(reward < 100, np.tile(np.arange(10) < count, (2, 1)))


@pytest.mark.parametrize(
    ("step", "count"), [(0, 10), (10, 10), (15, 6), (20, 2), (50, 2)]
)
def test_mixed_batches_follow_the_schedule(step, count):
    reward = mixed(schedules.Schedule(1.0, 0.2, 10.0, 20.0), step).reward
    np.testing.assert_array_equal((reward < 100).sum(axis=1), [count, count])


def test_mixed_batches_keep_the_numbers_of_a_row_together():
    batch = mixed(0.5)
    expected = jax.vmap(rows_of)(batch.reward)
    cases.assert_identical(batch, expected)


def test_mixed_batches_draw_new_rows_for_each_update():
    draws = [np.asarray(mixed(0.5, seed=seed).reward) for seed in range(20)]
    assert {*np.ravel(draws)} == {*REAL, *IMAGINED}
    assert not any(np.array_equal(*batches) for batches in draws)


def test_mixed_batches_are_real_while_nothing_is_imagined():
    assert np.all(mixed(0.0, num_imagined=0).reward < 100)


def test_mixed_batches_are_real_without_a_model():
    assert np.all(mixed(0.0, loss=mbpo.NO_MODEL).reward < 100)


# --- Divergence -----------------------------------------------------------------------


_freeze_if_diverged = jax.jit(
    divergence.freeze_if_diverged, static_argnames="has_model"
)


def judged(
    q_max,
    reward=2.0,
    temperature=0.5,
    discount=0.9,
    slack=10.0,
    was_finite=True,
    num_rows=2,
):
    """Why a seed that goes from 0 to 1 has diverged, or ""; two action dimensions."""

    def state(value):
        model = dynamics.DynamicsParams(
            network={"w": jnp.float32(value)}, normalizer=None, config=None
        )
        return state_with(
            env_steps=jnp.int32(value),
            replay=buffer_of([0.0]).replace(
                data=rows_of([-reward, 0.0]), size=jnp.int32(num_rows)
            ),
            dynamics=DynamicsState(
                params=model,
                opt_state=None,
                elites=None,
                was_finite=jnp.bool_(was_finite),
            ),
            agent={"w": jnp.float32(value)},
            alive=jnp.bool_(True),
            diverged_at=jnp.int32(-1),
            diverged_by=jnp.int32(0),
        )

    # The temperature that was learned is no excuse for a large value.
    metrics = {"sac/q_max": jnp.float32(q_max), "sac/temperature": jnp.float32(1e6)}
    agent = CONFIG.sac.replace(discount=discount, initial_temperature=temperature)
    algorithm = CONFIG.replace(sac=agent, divergence_slack=slack)
    actual = _freeze_if_diverged(
        state(0), state(1), metrics, config=algorithm, has_model=True
    )
    assert float(actual.agent["w"]) == float(actual.alive)
    assert int(actual.diverged_at) == (-1 if actual.alive else 1)
    assert bool(actual.alive) == (int(actual.diverged_by) == 0)
    return divergence.CAUSES[int(actual.diverged_by)]


@pytest.mark.parametrize(
    ("bound", "numbers"),
    [
        (300.0, {}),  # 10 (2 + 0.5 * 2) / (1 - 0.9)
        (400.0, {"reward": 3.0}),
        (500.0, {"temperature": 1.5}),
        (60.0, {"discount": 0.5}),
        (90.0, {"slack": 3.0}),
    ],
)
def test_freeze_if_diverged_bounds_the_critics_by_possible_returns(bound, numbers):
    # Far enough from the bound for float32.
    assert judged(0.999 * bound, **numbers) == ""
    assert judged(1.001 * bound, **numbers) == "critic"


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_freeze_if_diverged_flags_a_non_finite_value(value):
    assert judged(value) == "critic"


def test_freeze_if_diverged_names_an_environment_that_gave_no_data():
    assert judged(1.0, num_rows=0) == "environment"


def test_freeze_if_diverged_names_a_model_that_was_never_fitted():
    assert judged(1.0, was_finite=False) == "model"


def test_freeze_if_diverged_has_no_bound_without_a_discount():
    assert judged(1e30, discount=1.0) == ""


def loss_of_nan(params, batch, value_fn=None, *, predict=dynamics.predict):
    return losses.mse_loss(params, batch, value_fn, predict=predict) * jnp.nan


def gradient_of_nan(params, batch, value_fn=None, *, predict=dynamics.predict):
    # The root of zero has no gradient, and `where` hides that from the value.
    number = losses.mse_loss(params, batch, value_fn, predict=predict)
    return number + jnp.where(number >= 0.0, 0.0, jnp.sqrt(number * 0.0) * jnp.nan)


@pytest.mark.parametrize(
    ("loss", "learning_rate"),
    [(loss_of_nan, 1e-3), (gradient_of_nan, 1e-3), (losses.mse_loss, 1e30)],
    ids=["loss", "gradient", "learning rate"],
)
def test_a_seed_whose_model_is_never_fitted_is_frozen(monkeypatch, loss, learning_rate):
    # A copy, so that other tests don't see the loss.
    monkeypatch.setattr(losses.registry, "LOSSES", {})
    losses.register(loss.__name__)(loss)
    config = CONFIG.replace(
        loss=loss.__name__, fit=CONFIG.fit.replace(learning_rate=learning_rate)
    )
    state, metrics = cases.epoch(cases.start(), config)
    assert not state.alive
    assert divergence.CAUSES[int(state.diverged_by)] == "model"
    assert int(metrics["model/finite"]) == int(metrics["model/improved"]) == 0
