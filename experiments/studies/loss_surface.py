"""Each loss as a function of the predicted next state, around one real next state.

The pendulum in two dimensions, angle and velocity, and the value function of an agent
that learned to swing it up. The paper's claim (its figure 1): the surface of VAML winds
along the value's isolines, the unbounded form has a valley along which a prediction may
run away, VaGraM's is an ellipse around the real state with axes along the state's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from experiments.studies import Plan, loop
from vagram_jax import envs, losses, replay, sac
from vagram_jax.analysis import drawing, summary
from vagram_jax.cli import flags, launch
from vagram_jax.losses import value_gradients as weights
from vagram_jax.run import devices, runner
from vagram_jax.storage import files
from vagram_jax.types import Transition, ValueFn

_LOSSES = ("vaml", "vagram_unbounded", "quadratic", "vagram", "mse")
_AXES = ("angle (rad)", "velocity (rad/s)")
_REACH = np.array([np.pi, 8.0])  # of the pendulum's states
_STEPS = {"quick": (6_000, 101), "full": (20_000, 401)}
# The share of the plane that lies within the lines which the verdict speaks of.
_SHARE = 0.05


class Surface(NamedTuple):
    """Losses and values over the plane of states.

    Attributes:
      angles: `[G]`, in rad.
      velocities: `[G]`, in rad/s.
      value: `[G, G]`, mean over the critics, by angle and velocity.
      losses: a loss's name to `[G, G]`, of predicting that state.
      real: `[2]`, the real next state.
      gradient_weights: `[2]`, VaGraM's weights there.
    """

    angles: np.ndarray
    velocities: np.ndarray
    value: np.ndarray
    losses: Mapping[str, np.ndarray]
    real: np.ndarray
    gradient_weights: np.ndarray


def run(plan: Plan) -> int:
    """Trains an agent, evaluates the losses, and concludes.

    Args:
      plan: what was asked.

    Returns:
      The exit status.
    """
    total_steps, points = _STEPS[plan.preset]
    data, value_fn = train_agent(total_steps, plan)
    found = surface(value_fn, reference(data, value_fn), points)
    folder = Path(*plan.place)
    files.write_rows(folder / "surface.csv", _rows(found))
    files.write_rows(folder / "table.csv", table(found))
    _draw(found, folder / "surface.png")
    loop.write_record(plan, conclude(found), _LOSSES)
    return 0


def train_agent(total_steps: int, plan: Plan) -> tuple[Transition, ValueFn]:
    """Plain SAC on the pendulum's two-dimensional state.

    Its critics are smooth, so that their second derivatives mean something.

    Args:
      total_steps: of the environment.
      plan: what was asked.

    Returns:
      What it saw, and its value function.
    """
    configs = flags.load("vagram_jax/cli/configs/pendulum.py", *launch.CONFIGS)
    settings = {"distractors": "0", "observation": "state", "num_seeds": "1"}
    settings |= {"total_steps": str(total_steps), "replay_capacity": str(total_steps)}
    settings |= {"sac.activation": "silu", "first_seed": str(plan.first_seed)}
    env_config, algorithm, run = flags.override(configs, settings)
    algorithm = launch.with_loss(algorithm, "sac")
    env = envs.from_config(env_config)
    for states, told in runner.train(run, algorithm, env, layout=plan.kept.layout):
        agent, data = devices.fetch_own((states.agent, states.replay))
        returns = told.returns
    print(f"agent: return {returns[0]:.0f}", flush=True)
    agent, data = jax.tree.map(lambda x: jnp.asarray(x[0]), (agent, data))
    return data.data, sac.value_fn(agent, config=algorithm.sac)


def reference(data: Transition, value_fn: ValueFn) -> Transition:
    """The transition around whose successor the losses are shown.

    Of those on the way up, with the angle between 0.3 and 1.5 rad, it is the one with
    the middle norm of the value gradient.

    Args:
      data: `[N, ...]` transitions.
      value_fn: one state to `[K]`.

    Returns:
      `[1, ...]`, that transition.
    """
    gradients = jnp.mean(weights.value_gradients(value_fn, data.next_obs), axis=1)
    norms = np.linalg.norm(np.asarray(gradients) * _REACH, axis=-1)
    angle = np.abs(np.asarray(data.next_obs[:, 0]))
    rows = np.flatnonzero((angle > 0.3) & (angle < 1.5))
    middle = rows[np.argsort(norms[rows])[len(rows) // 2]]
    return replay.take(data, jnp.array([middle]))


def surface(value_fn: ValueFn, batch: Transition, points: int) -> Surface:
    """Losses and values over the plane of states.

    Args:
      value_fn: one state to `[K]`.
      batch: `[1, ...]`, a transition.
      points: G, along each axis.

    Returns:
      The surface.
    """
    axes = [np.linspace(-reach, reach, points) for reach in _REACH]
    states = jnp.stack(jnp.meshgrid(*axes, indexing="ij"), axis=-1)

    def predict(params, obs, action):
        return params[None], batch.reward

    def over_plane(function):
        flat = jax.jit(jax.vmap(function))(states.reshape(-1, 2))
        return np.asarray(flat).reshape(points, points)

    return Surface(
        *axes,
        value=over_plane(lambda state: jnp.mean(value_fn(state))),
        losses={
            name: over_plane(
                lambda state, fn=losses.get(name).fn: fn(
                    state, batch, value_fn, predict=predict
                )
            )
            for name in _LOSSES
        },
        real=np.asarray(batch.next_obs[0]),
        gradient_weights=np.asarray(weights.from_gradients(batch, value_fn)[0]),
    )


def table(found: Surface) -> list[dict[str, Any]]:
    """Where each loss is low: in how many pieces, and how far from the real state.

    Args:
      found: the surface.

    Returns:
      A row per loss; distances are in shares of the range of each dimension.
    """
    plane = np.stack(np.meshgrid(found.angles, found.velocities, indexing="ij"), -1)
    offset = np.abs(plane - found.real) / (2 * _REACH)
    rows = []
    for name, loss in found.losses.items():
        is_low = loss <= np.quantile(loss, _SHARE)
        rows.append(
            {"loss": name, "pieces": int(ndimage.label(is_low)[1])}
            | {"furthest_angle": float(offset[is_low, 0].max())}
            | {"furthest_velocity": float(offset[is_low, 1].max())}
            | {"value_error": float(_value_error(found, is_low))}
        )
    return rows


def conclude(found: Surface) -> list[str]:
    """What the surface shows.

    Args:
      found: the surface.

    Returns:
      Sentences.
    """
    angle, velocity = np.sqrt(found.gradient_weights)
    sentences = [
        f"Around angle {found.real[0]:.2f} rad, velocity {found.real[1]:.2f} rad/s "
        f"vagram counts an error of 1 rad as much as {angle / velocity:.3g} rad/s."
    ]
    for row in table(found):
        pieces = "one piece" if row["pieces"] == 1 else f"{row['pieces']} pieces"
        sentences.append(
            f"{row['loss']}: the lowest {_SHARE:.0%} of the plane are {pieces}, up to "
            f"{row['furthest_angle']:.0%} of the angle's range and "
            f"{row['furthest_velocity']:.0%} of the velocity's away from the real "
            "state; the value there is off by "
            f"{summary.format_number(row['value_error'])} (root mean square)."
        )
    return sentences


def _value_error(found: Surface, where: np.ndarray) -> float:
    """How far values in a part of the plane are from that of the real state."""
    at = [
        np.abs(axis - x).argmin() for axis, x in zip(found[:2], found.real, strict=True)
    ]
    return np.sqrt(np.mean(np.square(found.value[where] - found.value[tuple(at)])))


def _rows(found: Surface) -> list[dict[str, Any]]:
    """Every fifth point of the plane, for who draws it again."""
    return [
        {"angle": found.angles[i], "velocity": found.velocities[j]}
        | {"value": float(found.value[i, j])}
        | {name: float(loss[i, j]) for name, loss in found.losses.items()}
        for i in range(0, len(found.angles), 5)
        for j in range(0, len(found.velocities), 5)
    ]


def _draw(found: Surface, path: Path) -> None:
    """The value behind the lines of each loss, the real state a cross."""
    figure = drawing.new_figure(height=7.5)
    panels = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    plane = (found.angles, found.velocities)
    for axes, name in zip(panels, ("value", *_LOSSES), strict=True):
        axes.contourf(*plane, found.value.T, levels=20, cmap="cividis")
        if name in found.losses:
            loss = found.losses[name]
            levels = np.unique(np.quantile(loss, (0.01, 0.02, _SHARE, 0.1, 0.2)))
            axes.contour(*plane, loss.T, levels=levels, colors="white", linewidths=0.9)
        axes.plot(*found.real, "x", color="#D55E00", markersize=9, markeredgewidth=2.5)
        axes.set_title(name, loc="left", fontsize=12, fontweight="bold")
    for axes in panels[3:]:
        axes.set_xlabel(_AXES[0])
    for axes in panels[::3]:
        axes.set_ylabel(_AXES[1])
    note = (
        "Behind: the value, lighter is higher. Lines: the lowest 1, 2, 5, 10 and 20% "
    )
    figure.supxlabel(note + "of each loss. Cross: the real next state.", fontsize=10)
    drawing.finish(figure, path)
