"""Value errors of models while the value function changes.

The data are fixed: all that an agent saw on the pendulum. One model is fitted to them
again and again, each time for the value function of a later moment of the agent's
training. This is what happens in the training loop, except that errors of the model
don't affect the data. The control is a value function that stays the same. The paper's
claim: VAML works for one value function and fails as it changes; VaGraM does not.

    error = mean_k [ mean_b (V_k(s_hat_b) - V_k(s'_b))^2 ] / mean_k Var_b V_k(s'_b)

on held-out rows: 0 is perfect, 1 is as bad as predicting the mean value. The study's
figure `errors.png` shows the error after each fit; `finals.csv` has the last ones.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies import loop
from vagram_jax import dynamics, envs, fit, losses, replay, sac
from vagram_jax.analysis import plots, verdicts
from vagram_jax.analysis.study import Design, Result, Study
from vagram_jax.losses import value_gradients
from vagram_jax.run import devices, session
from vagram_jax.run import loop as run_loop

_LOSSES = ("vagram", "vaml", "vagram_unbounded", "mse_normalized", "mle")
# The number of distracting dimensions and the hidden widths.
_CONDITIONS = {
    "full": (0, (64, 64)),
    "small": (0, (8, 8)),
    "distracted": (10, (64, 64)),
    "small, distracted": (10, (8, 8)),
}
_MOVING, _FROZEN = "moving", "frozen"
DESIGN = Design(
    methods=("vagram",), baselines=_LOSSES[1:], metric="error", higher_is_better=False
)
# Stands for an error that isn't finite, and is above all others.
_FAILED = 1e6

Errors = Mapping[tuple[str, str, str], np.ndarray]  # condition, values, loss


class _Size(NamedTuple):
    seeds: int
    total_steps: int  # of the agent's training
    num_values: int
    epochs: int  # of each fit


_SIZES = {"quick": _Size(16, 4_000, 8, 10), "full": _Size(16, 10_000, 20, 50)}


class _History(NamedTuple):
    """The data of an agent's training, and the agent at several moments of it."""

    data: replay.ReplayState  # [S, N, ...]
    agents: sac.SACState  # [S, T, ...], in order of time
    config: sac.SACConfig


def run(
    preset: str,
    folder: Path,
    *,
    options: session.SessionOptions,
    num_seeds: int | None = None,
    first_seed: int | None = None,
) -> int:
    """Trains agents, then models on their data, and writes the study.

    Args:
      preset: "quick" or "full".
      folder: of the study.
      options: where the seeds train.
      num_seeds: None takes the preset's number.
      first_seed: of the seeds, 0 by default.

    Returns:
      The exit status.
    """
    began = time.time()
    record = loop.new_record(preset, _LOSSES)
    size = _SIZES[preset]
    size = size._replace(seeds=num_seeds or size.seeds)
    seeds = np.arange(size.seeds, dtype=np.uint32) + np.uint32(first_seed or 0)
    histories: dict[int, _History] = {}
    errors: dict[tuple[str, str, str], np.ndarray] = {}
    for condition, (distractors, hidden) in _CONDITIONS.items():
        if distractors not in histories:
            histories[distractors] = _train_agents(distractors, size, seeds, options)
        history = histories[distractors]
        for loss in _LOSSES:
            print(f"{condition}: {loss}", flush=True)
            for values in (_MOVING, _FROZEN):
                past = history if values == _MOVING else _freeze(history)
                errors[condition, values, loss] = _errors(
                    loss, hidden, past, size=size, seeds=seeds, layout=options.layout
                )
    _draw(errors, folder / "errors.png")
    results = as_results({key: x[:, -1, 1] for key, x in errors.items()}, seeds)
    study = Study(folder, DESIGN, results, record)
    loop.finish(study, began, more=conclude(study), figures=False)
    return 0


def value_errors(
    seed: jax.Array,
    data: replay.ReplayState,
    agents: sac.SACState,
    *,
    loss: losses.ModelLoss,
    hidden: tuple[int, ...],
    sac_config: sac.SACConfig,
    epochs: int,
) -> jax.Array:
    """Fits one model to the same data for each of several value functions in turn.

    Args:
      seed: of the model.
      data: a full buffer.
      agents: `[T, ...]`, whose values the model is fitted for, in this order.
      loss: of the model.
      hidden: widths of the hidden layers.
      sac_config: of the agents.
      epochs: of each fit.

    Returns:
      `[T, 2]`, the error for each value function before and after the fit.
    """
    key_split, key_init, key_fits = jax.random.split(jax.random.key(seed), 3)
    train, held_out = _split(key_split, data)
    config = fit.FitConfig(
        learning_rate=3e-3, batch_size=64, max_epochs=epochs, patience=epochs
    )

    def one_fit(model, x):
        key, agent = x
        value_fn = sac.value_fn(agent, config=sac_config)
        before = value_error(model.params, held_out, value_fn)
        model, _ = fit.fit(key, model, train, value_fn, loss=loss, config=config)
        after = value_error(model.params, held_out, value_fn)
        return model, jnp.stack([before, after])

    model = _new_model(key_init, loss, hidden, train.data, config)
    keys = jax.random.split(key_fits, jax.tree.leaves(agents)[0].shape[0])
    return jax.lax.scan(one_fit, model, (keys, agents))[1]


def value_error(params, batch, value_fn) -> jax.Array:
    """The squared error of values at predicted states, divided by their variance.

    Args:
      params: of an ensemble.
      batch: `[B, ...]` transitions.
      value_fn: one state to `[K]` values.

    Returns:
      A scalar, the mean over members.
    """
    predicted = dynamics.predict(params, batch.obs, batch.action).next_obs
    real = value_gradients.values_of(value_fn, batch.next_obs)  # [B, K]
    error = value_gradients.values_of(value_fn, predicted) - real  # [E, B, K]
    return jnp.mean(jnp.square(error)) / jnp.mean(jnp.var(real, axis=0))


def as_results(errors: Errors, seeds: np.ndarray) -> list[Result]:
    """The results of the study.

    Args:
      errors: condition, values and loss to `[S]` errors after the last fit.
      seeds: `[S]`.

    Returns:
      A result for each.
    """
    columns = ("condition", "values", "loss")
    return [
        Result(dict(zip(columns, key, strict=True)), seeds, x, x >= _FAILED)
        for key, x in errors.items()
    ]


def conclude(study: Study) -> list[str]:
    """Compares the errors with moving and with frozen values.

    Args:
      study: with the results of `as_results`.

    Returns:
      A sentence per condition for VAML and for VaGraM.
    """
    verbs = {
        verdicts.BETTER: "lower than",
        verdicts.WORSE: "higher than",
        verdicts.UNDECIDED: "not significantly different from",
    }
    sentences = []
    for condition in _CONDITIONS:
        for loss in ("vaml", "vagram"):
            moving, frozen = (
                study.at(condition=condition, values=values)[loss]
                for values in (_MOVING, _FROZEN)
            )
            sentences.append(
                f"{condition}: the error of {loss} with moving values "
                f"({verdicts.text(moving.interval)}) is "
                f"{verbs[study.outcome(moving, frozen)]} its error with frozen values "
                f"({verdicts.text(frozen.interval)})."
            )
    return sentences


def _train_agents(
    distractors: int, size: _Size, seeds: np.ndarray, options: session.SessionOptions
) -> _History:
    """Trains plain SAC on the pendulum."""
    interval = (size.total_steps - 500) // size.num_values
    numbers = {
        "distractors": distractors,
        "num_seeds": size.seeds,
        "first_seed": seeds[0],
        "replay_capacity": size.total_steps,
        "updates_per_step": 2,
        "total_steps": 500 + interval * size.num_values,
        "steps_per_epoch": interval,
        "eval_every": size.num_values,
    }
    settings = {key: str(number) for key, number in numbers.items()}
    env_config, algorithm, run_config = loop.make_configs(
        {"config": "pendulum", "loss": "sac", **settings}
    )
    agents = []
    for states, progress in run_loop.train(
        run_config, algorithm, envs.from_config(env_config), layout=options.layout
    ):
        if progress.env_steps > algorithm.warmup_steps:
            agents.append(devices.fetch_own(states.agent))
        data = devices.fetch_own(states.replay)
    print(f"agents: mean return {np.nanmean(progress.returns):.0f}", flush=True)
    stacked = jax.tree.map(lambda *x: np.stack(x, axis=1), *agents)
    return _History(data, stacked, algorithm.sac)


def _freeze(history: _History) -> _History:
    """The same data with the last agent at all times."""
    last = jax.tree.map(
        lambda x: np.repeat(x[:, -1:], x.shape[1], axis=1), history.agents
    )
    return history._replace(agents=last)


def _errors(
    loss: str,
    hidden: tuple[int, ...],
    history: _History,
    *,
    size: _Size,
    seeds: np.ndarray,
    layout: devices.Layout,
) -> np.ndarray:
    """The value errors `[S, T, 2]` of a loss before and after each fit."""
    track = functools.partial(
        value_errors,
        loss=losses.get(loss),
        hidden=hidden,
        sac_config=history.config,
        epochs=size.epochs,
    )
    program = devices.over_lanes(track, layout, in_axes=(0, 0, 0))
    # On several devices there may be more lanes than seeds.
    count = history.data.size.shape[0]
    all_seeds = np.arange(count, dtype=np.uint32) + seeds[0]
    lanes = devices.put((all_seeds, history.data, history.agents), layout, count)
    errors = devices.fetch_all(program(*lanes))[: size.seeds]
    return np.where(np.isfinite(errors), errors, _FAILED)


def _new_model(key, loss: losses.ModelLoss, hidden, data, config: fit.FitConfig):
    """A single model, because an ensemble would show nothing more about a loss."""
    return fit.init(
        key,
        obs_dim=data.obs.shape[-1],
        action_dim=data.action.shape[-1],
        dynamics_config=dynamics.DynamicsConfig(
            hidden=hidden,
            num_members=1,
            num_elites=1,
            head="gaussian" if loss.gaussian else "deterministic",
            normalize_state=True,
            normalize_reward=True,
        ),
        config=config,
    )


def _split(key, data: replay.ReplayState):
    """Four fifths of a full buffer as a buffer, and the other rows."""
    order = jax.random.permutation(key, data.capacity)
    cut = data.capacity * 4 // 5
    # Rows stay in order of time, because a loss may need the transition that follows.
    train, held_out = (
        replay.take(data.data, jnp.sort(x)) for x in (order[:cut], order[cut:])
    )
    full = jnp.int32(cut)
    return replay.ReplayState(data=train, insert_at=jnp.int32(0), size=full), held_out


def _draw(errors: Errors, path: Path) -> None:
    panels = {
        f"{condition}: value {values}": {
            loss: {
                float(step): after
                for step, after in enumerate(
                    errors[condition, values, loss][..., 1].T, 1
                )
            }
            for loss in _LOSSES
        }
        for condition in _CONDITIONS
        for values in (_MOVING, _FROZEN)
    }
    plots.panels(panels, path, x_label="fit", y_label="value error", log=True)
