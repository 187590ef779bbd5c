"""Each loss as a function of the predicted next state, around one real next state.

The task is the pendulum in two dimensions, angle and velocity, with the value function
of an agent that learned the swing-up. The paper's claim (its figure 1): the surface of
VAML follows the level sets of the value, the unbounded form has a long valley, and
VaGraM's is an ellipse around the real state with axes along the dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from scipy import ndimage

from experiments.studies import loop
from vagram_jax import envs, losses, replay, sac
from vagram_jax.analysis import figures, summary
from vagram_jax.losses import value_gradients, weighted
from vagram_jax.run import devices, session
from vagram_jax.run import loop as run_loop
from vagram_jax.storage import files
from vagram_jax.types import Transition, ValueFn

_LOSSES = ("vaml", "vagram_unbounded", "quadratic", "vagram", "mse")
_AXES = ("angle (rad)", "velocity (rad/s)")
_LIMITS = np.array([np.pi, 8.0])  # of the pendulum's states
_SIZES = {"quick": (6_000, 101), "full": (20_000, 401)}  # steps, points per axis
# A loss is called low where it is in the lowest 5% of the plane.
_LOW = 0.05


class Surface(NamedTuple):
    """Losses and values over the plane of states.

    Attributes:
      angles: `[G]`, in rad.
      velocities: `[G]`, in rad/s.
      value: `[G, G]`, mean over the critics, by angle and velocity.
      losses: a loss's name to `[G, G]`, the loss of predicting that state.
      real: `[2]`, the real next state.
      gradient_weights: `[2]`, VaGraM's weights there.
    """

    angles: np.ndarray
    velocities: np.ndarray
    value: np.ndarray
    losses: Mapping[str, np.ndarray]
    real: np.ndarray
    gradient_weights: np.ndarray


def run(
    preset: str,
    folder: Path,
    *,
    options: session.SessionOptions,
    num_seeds: int | None = None,
    first_seed: int | None = None,
) -> int:
    """Trains an agent, evaluates the losses and writes the study.

    Args:
      preset: "quick" or "full".
      folder: of the study.
      options: where the agent trains.
      num_seeds: not used, there is one agent.
      first_seed: of the agent, 0 by default.

    Returns:
      The exit status.
    """
    del num_seeds
    began = time.time()
    record = loop.new_record(preset, _LOSSES)
    total_steps, points = _SIZES[preset]
    data, value_fn = _train_agent(total_steps, first_seed or 0, options)
    plane = surface(value_fn, reference(data, value_fn), points)
    files.write_rows(folder / "table.csv", table(plane))
    _draw(plane, folder / "surface.png")
    verdict = conclude(plane)
    record |= {"verdict": verdict, "seconds": round(time.time() - began)}
    files.write_json(folder / "study.json", record)
    print("\n".join(["", *verdict, f"written: {folder}"]))
    return 0


def reference(data: Transition, value_fn: ValueFn) -> Transition:
    """The transition around whose next state the losses are shown.

    It is the one with the median norm of the value gradient among those with an angle
    between 0.3 and 1.5 rad, on the way up.

    Args:
      data: `[N, ...]` transitions.
      value_fn: one state to `[K]`.

    Returns:
      `[1, ...]`, the transition.
    """
    gradients = jnp.mean(
        value_gradients.value_gradients(value_fn, data.next_obs), axis=1
    )
    norms = np.linalg.norm(np.asarray(gradients) * _LIMITS, axis=-1)
    angle = np.abs(np.asarray(data.next_obs[:, 0]))
    rows = np.flatnonzero((angle > 0.3) & (angle < 1.5))
    middle = rows[np.argsort(norms[rows])[len(rows) // 2]]
    return replay.take(data, jnp.array([middle]))


def surface(value_fn: ValueFn, batch: Transition, points: int) -> Surface:
    """Losses and values over the plane of states.

    Args:
      value_fn: one state to `[K]`.
      batch: `[1, ...]`, the transition whose next state is predicted.
      points: G, the number of points along each axis.

    Returns:
      The surface.
    """
    axes = [np.linspace(-limit, limit, points) for limit in _LIMITS]
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
        gradient_weights=np.asarray(weighted.vagram_weights(batch, value_fn)[0]),
    )


def table(plane: Surface) -> list[dict[str, Any]]:
    """The regions in which each loss is low.

    Args:
      plane: from `surface`.

    Returns:
      A row per loss: the number of connected regions (`pieces`), their largest distance
      from the real state as fractions of each dimension's range, and the root mean
      squared difference between the value there and at the real state.
    """
    states = np.stack(np.meshgrid(plane.angles, plane.velocities, indexing="ij"), -1)
    offset = np.abs(states - plane.real) / (2 * _LIMITS)
    rows = []
    for name, loss in plane.losses.items():
        is_low = loss <= np.quantile(loss, _LOW)
        rows.append(
            {"loss": name, "pieces": int(ndimage.label(is_low)[1])}
            | {"furthest_angle": float(offset[is_low, 0].max())}
            | {"furthest_velocity": float(offset[is_low, 1].max())}
            | {"value_error": float(_value_error(plane, is_low))}
        )
    return rows


def conclude(plane: Surface) -> list[str]:
    """Describes the table in sentences."""
    angle, velocity = np.sqrt(plane.gradient_weights)
    sentences = [
        f"Around angle {plane.real[0]:.2f} rad, velocity {plane.real[1]:.2f} rad/s "
        f"vagram counts an error of 1 rad as much as {angle / velocity:.3g} rad/s."
    ]
    for row in table(plane):
        pieces = "one piece" if row["pieces"] == 1 else f"{row['pieces']} pieces"
        sentences.append(
            f"{row['loss']}: the lowest {_LOW:.0%} of the plane are {pieces}, up to "
            f"{row['furthest_angle']:.0%} of the angle's range and "
            f"{row['furthest_velocity']:.0%} of the velocity's away from the real "
            "state; the value there is off by "
            f"{summary.format_number(row['value_error'])} (root mean square)."
        )
    return sentences


def _value_error(plane: Surface, where: np.ndarray) -> float:
    """Root mean squared difference between values in a region and at the real state."""
    at = [
        np.abs(axis - x).argmin() for axis, x in zip(plane[:2], plane.real, strict=True)
    ]
    return np.sqrt(np.mean(np.square(plane.value[where] - plane.value[tuple(at)])))


def _train_agent(
    total_steps: int, seed: int, options: session.SessionOptions
) -> tuple[Transition, ValueFn]:
    """Trains plain SAC; returns its data and its value function."""
    settings = {
        "config": "pendulum",
        "loss": "sac",
        "distractors": "0",
        "observation": "state",
        "num_seeds": "1",
        "first_seed": str(seed),
        "total_steps": str(total_steps),
        "replay_capacity": str(total_steps),
        "sac.activation": "silu",  # smooth, so that second derivatives mean something
    }
    env_config, algorithm, run_config = loop.make_configs(settings)
    env = envs.from_config(env_config)
    for states, progress in run_loop.train(
        run_config, algorithm, env, layout=options.layout
    ):
        agent, data = devices.fetch_own((states.agent, states.replay))
        final_return = progress.returns[0]
    print(f"agent: return {final_return:.0f}", flush=True)
    agent, data = jax.tree.map(lambda x: jnp.asarray(x[0]), (agent, data))
    return data.data, sac.value_fn(agent, config=algorithm.sac)


def _draw(plane: Surface, path: Path) -> None:
    """Draws the value in color, level sets of each loss, and the real state."""
    figure = figures.new_figure(height=7.5)
    panels = figure.subplots(2, 3, sharex=True, sharey=True).ravel()
    grid = (plane.angles, plane.velocities)
    for axes, name in zip(panels, ("value", *_LOSSES), strict=True):
        axes.contourf(*grid, plane.value.T, levels=20, cmap="cividis")
        if name in plane.losses:
            loss = plane.losses[name]
            levels = np.unique(np.quantile(loss, (0.01, 0.02, _LOW, 0.1, 0.2)))
            axes.contour(*grid, loss.T, levels=levels, colors="white", linewidths=0.9)
        axes.plot(*plane.real, "x", color="#D55E00", markersize=9, markeredgewidth=2.5)
        axes.set_title(name, loc="left", fontsize=12, fontweight="bold")
    for axes in panels[3:]:
        axes.set_xlabel(_AXES[0])
    for axes in panels[::3]:
        axes.set_ylabel(_AXES[1])
    note = (
        "Color: the value, lighter is higher. Lines: the lowest 1, 2, 5, 10 and 20% "
        "of each loss. Cross: the real next state."
    )
    figure.supxlabel(note, fontsize=10)
    figures.save(figure, path)
