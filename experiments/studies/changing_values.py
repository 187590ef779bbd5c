"""Value errors of models whose value function moves while they are trained.

Data are fixed: all that an agent saw on the pendulum. Models are fitted to them again
and again, each time for the agent's value function of a later moment, as in the loop,
but without letting a model's errors back into the data. The control is a value function
that doesn't move. The paper's claim: VAML does well on one value function and fails as
it changes; VaGraM does not.

    error = mean_k [ mean_b (V_k(s_hat_b) - V_k(s'_b))^2 ] / mean_k Var_b V_k(s'_b)

on rows that no model saw: 0 is perfect, 1 as bad as the mean value. It is `stale` when
the value has just moved, and `fitted` after the next fit. In the study's folder:

    errors.csv, errors.png   interquartile means before and after each fit
    finals.csv               a row per seed: its error after the last fit
    table.csv                their intervals, and the chance that vagram's is lower
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies import Plan, loop, verdicts
from vagram_jax import dynamics, envs, fit, losses, replay, sac
from vagram_jax.analysis import plots, stats
from vagram_jax.cli import flags, launch
from vagram_jax.losses import value_gradients as weights
from vagram_jax.run import devices, runner
from vagram_jax.storage import files

_LOSSES = ("vagram", "vaml", "vagram_unbounded", "mse_normalized", "mle")
_CONDITIONS = {
    "full": (0, (64, 64)),
    "small": (0, (8, 8)),
    "distracted": (10, (64, 64)),
    "small, distracted": (10, (8, 8)),
}
_MOVES = {"moving": True, "frozen": False}
# The number that stands for an error that isn't finite: worse than any seen.
_FAILED = 1e6


class _Size(NamedTuple):
    """How much a preset does: of the agent's training and of each fit."""

    seeds: int
    total_steps: int
    num_values: int
    epochs: int


_SIZES = {"quick": _Size(16, 4_000, 8, 10), "full": _Size(16, 10_000, 20, 50)}


class _Past(NamedTuple):
    """What is left of an agent's training, over all lanes."""

    data: replay.ReplayState  # [S, N, ...]
    agents: sac.SACState  # [S, T, ...], ascending in time
    config: sac.SACConfig


def run(plan: Plan) -> int:
    """Trains agents, then models on their data, and concludes.

    Args:
      plan: what was asked.

    Returns:
      The exit status.
    """
    size = _SIZES[plan.preset]
    if plan.seeds:
        size = size._replace(seeds=plan.seeds)
    pasts: dict[int, _Past] = {}
    found: dict[tuple[str, str, str], np.ndarray] = {}
    for condition, (distractors, hidden) in _CONDITIONS.items():
        if distractors not in pasts:
            pasts[distractors] = train_agents(distractors, size, plan)
        for loss in _LOSSES:
            print(f"{condition}: {loss}", flush=True)
            errors = errors_of(loss, hidden, pasts[distractors], size, plan)
            found |= {(condition, loss, move): x for move, x in errors.items()}
    folder = Path(*plan.place)
    files.write_rows(folder / "errors.csv", _rows(found))
    _draw(found, folder / "errors.png")
    last = {key: errors[:, -1, 1] for key, errors in found.items()}
    files.write_rows(folder / "finals.csv", _finals_rows(last, plan.first_seed))
    files.write_rows(folder / "table.csv", _table_rows(last))
    loop.write_record(plan, conclude(last), _LOSSES)
    return 0


def train_agents(distractors: int, size: _Size, plan: Plan) -> _Past:
    """Plain SAC on the pendulum: its data and snapshots of it.

    Args:
      distractors: how many distracting dimensions.
      size: of the preset.
      plan: what was asked.

    Returns:
      What is left of it.
    """
    configs = flags.load("vagram_jax/cli/configs/pendulum.py", *launch.CONFIGS)
    interval = (size.total_steps - 500) // size.num_values
    settings = {"distractors": distractors, "total_steps": size.total_steps}
    settings |= {"num_seeds": size.seeds, "first_seed": plan.first_seed}
    settings |= {"replay_capacity": size.total_steps, "updates_per_step": 2}
    settings["total_steps"] = 500 + interval * size.num_values
    settings |= {"steps_per_epoch": interval, "eval_every": size.num_values}
    texts = {key: str(value) for key, value in settings.items()}
    env_config, algorithm, run = flags.override(configs, texts)
    algorithm = launch.with_loss(algorithm, "sac")
    agents = []
    for states, told in runner.train(
        run, algorithm, envs.from_config(env_config), layout=plan.kept.layout
    ):
        if told.env_steps > algorithm.warmup_steps:
            agents.append(devices.fetch_own(states.agent))
        data = devices.fetch_own(states.replay)
    print(f"agents: mean return {np.nanmean(told.returns):.0f}", flush=True)
    stacked = jax.tree.map(lambda *x: np.stack(x, axis=1), *agents)
    return _Past(data, stacked, algorithm.sac)


def errors_of(
    loss: str, hidden: tuple[int, ...], past: _Past, size: _Size, plan: Plan
) -> dict[str, np.ndarray]:
    """The value errors of a loss, with values that move and with the last ones.

    Args:
      loss: its registered name.
      hidden: widths of the model's hidden layers.
      past: data and agents.
      size: of the preset.
      plan: what was asked.

    Returns:
      "moving" and "frozen" to `[S, T, 2]`: stale and fitted.
    """
    layout, count = plan.kept.layout, past.data.size.shape[0]
    track = functools.partial(
        value_errors,
        loss=losses.get(loss),
        hidden=hidden,
        sac_config=past.config,
        epochs=size.epochs,
    )
    program = devices.over_lanes(track, layout, in_axes=(0, 0, 0))
    seeds = np.arange(count, dtype=np.uint32) + np.uint32(plan.first_seed)
    found = {}
    for move, moves in _MOVES.items():
        agents = past.agents
        if not moves:
            agents = jax.tree.map(lambda x: np.repeat(x[:, -1:], x.shape[1], 1), agents)
        lanes = devices.put((seeds, past.data, agents), layout, count)
        errors = devices.fetch_all(program(*lanes))[: size.seeds]
        found[move] = np.where(np.isfinite(errors), errors, _FAILED)
    return found


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
    """Fits one model to one agent's data for each of its value functions in turn.

    Args:
      seed: of this lane.
      data: a full buffer.
      agents: `[T, ...]`, in the order in which their values are fitted for.
      loss: what the model is trained with.
      hidden: widths of its hidden layers.
      sac_config: of the agents.
      epochs: of each fit.

    Returns:
      `[T, 2]`, the error before and after the fit for each value function.
    """
    key_split, key_init, key_fits = jax.random.split(jax.random.key(seed), 3)
    train, held = _split(key_split, data)
    config = fit.FitConfig(
        learning_rate=3e-3, batch_size=64, max_epochs=epochs, patience=epochs
    )
    options = {
        "loss": loss,
        "weight_config": weights.WeightConfig(discount=(sac_config.discount,)),
        "config": config,
    }

    def one_fit(model, x):
        key, agent = x
        value_fn = sac.value_fn(agent, config=sac_config)
        stale = value_error(model.params, held, value_fn)
        model, _ = fit.fit(key, model, train, value_fn, **options)
        return model, jnp.stack([stale, value_error(model.params, held, value_fn)])

    model = _new_model(key_init, loss, hidden, train.data, config)
    keys = jax.random.split(key_fits, jax.tree.leaves(agents)[0].shape[0])
    return jax.lax.scan(one_fit, model, (keys, agents))[1]


def value_error(params, batch, value_fn) -> jax.Array:
    """The error of values at predicted states, as a share of the values' variance.

    Args:
      params: an ensemble.
      batch: `[B, ...]` transitions.
      value_fn: one state to `[K]`.

    Returns:
      A scalar, the mean over members.
    """
    predicted = dynamics.predict(params, batch.obs, batch.action).next_obs
    real = weights.values_of(value_fn, batch.next_obs)  # [B, K]
    error = weights.values_of(value_fn, predicted) - real  # [E, B, K]
    return jnp.mean(jnp.square(error)) / jnp.mean(jnp.var(real, axis=0))


def conclude(last: Mapping[tuple[str, str, str], np.ndarray]) -> list[str]:
    """What the errors say.

    Args:
      last: condition, loss and "moving" or "frozen" to `[S]` errors after the last fit.

    Returns:
      Sentences.
    """
    sentences = []
    for condition in _CONDITIONS:
        moving, frozen = (
            {loss: last[condition, loss, move] for loss in _LOSSES} for move in _MOVES
        )
        others = [loss for loss in _LOSSES if loss != "vagram"]
        best = min(others, key=lambda loss: stats.iqm(moving[loss]))
        bar = f"that of the best other loss, {best}"
        sentences.append(
            f"{condition}: after the last fit the value error of vagram is "
            f"{_beside(moving['vagram'], bar, moving[best])}"
        )
        sentences += [
            f"{condition}: where the value moved {loss} has "
            f"{_beside(moving[loss], 'its own where it stood still', frozen[loss])}"
            for loss in ("vaml", "vagram")
        ]
    return sentences


def _beside(errors: np.ndarray, name: str, others: np.ndarray) -> str:
    """The end of a sentence that holds some errors against others."""
    one, other = (stats.interval({"": x}) for x in (errors, others))
    return (
        f"{verdicts.span(one)}, {verdicts.outcome(one, other)} {name}, "
        f"{verdicts.span(other)}; a seed of the former has the lower error with "
        f"probability {verdicts.span(_chance(errors, others))}."
    )


def _chance(errors: np.ndarray, others: np.ndarray) -> stats.Interval:
    """How likely a seed of `errors` is below one of `others`."""
    return stats.probability_of_improvement({"": others}, {"": errors})


def _new_model(key, loss: losses.ModelLoss, hidden, data, config: fit.FitConfig):
    """One member: an ensemble would say nothing more of a loss."""
    return fit.init(
        key,
        obs_dim=data.obs.shape[-1],
        action_dim=data.action.shape[-1],
        dynamics_config=dynamics.DynamicsConfig(
            hidden=hidden,
            num_members=1,
            num_elites=1,
            head="gaussian" if loss.gaussian else "deterministic",
            normalize_targets=True,
        ),
        config=config,
    )


def _split(key, data: replay.ReplayState):
    """Four fifths of a full buffer as a buffer, and the rest."""
    order = jax.random.permutation(key, data.capacity)
    cut = data.capacity * 4 // 5
    # The order of time is kept, which a loss may need to find what followed.
    train, held = (
        replay.take(data.data, jnp.sort(x)) for x in (order[:cut], order[cut:])
    )
    full = jnp.int32(cut)
    return replay.ReplayState(data=train, insert_at=jnp.int32(0), size=full), held


def _rows(found) -> list[dict[str, Any]]:
    rows = []
    for (condition, loss, move), errors in found.items():
        for step, kind in np.ndindex(errors.shape[1:]):
            rows.append(
                {"condition": condition, "loss": loss, "values": move}
                | {"fit": step + 1, "when": ("stale", "fitted")[kind]}
                | _summary(errors[:, step, kind])
            )
    return rows


def _summary(errors: np.ndarray) -> dict[str, Any]:
    interval = stats.interval({"": errors})
    return dict(zip(("iqm", "low", "high"), interval, strict=True)) | {
        "seeds": len(errors),
        "failed": int(np.sum(errors >= _FAILED)),
    }


def _finals_rows(last, first_seed: int) -> list[dict[str, Any]]:
    return [
        {"condition": condition, "loss": loss, "values": move}
        | {"seed": seed, "error": float(error)}
        for (condition, loss, move), errors in last.items()
        for seed, error in enumerate(errors, first_seed)
    ]


def _table_rows(last) -> list[dict[str, Any]]:
    """A row per condition, loss and kind of value, as studies of returns have it."""
    rows = []
    for (condition, loss, move), errors in last.items():
        chance: tuple[float | None, ...] = (None, None, None)
        if loss != "vagram":
            chance = _chance(last[condition, "vagram", move], errors)
        columns = ("p_vagram", "p_vagram_low", "p_vagram_high")
        rows.append(
            {"condition": condition, "values": move, "loss": loss}
            | _summary(errors)
            | dict(zip(columns, chance, strict=True))
        )
    return rows


def _draw(found, path: Path) -> None:
    panels = {}
    for condition in _CONDITIONS:
        for move in _MOVES:
            panels[f"{condition}: value {move}"] = {
                loss: {
                    float(step + 1): found[condition, loss, move][:, step, 1]
                    for step in range(found[condition, loss, move].shape[1])
                }
                for loss in _LOSSES
            }
    plots.panels(panels, path, x_label="fit", y_label="value error", log=True)
