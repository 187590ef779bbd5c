"""How fast the pieces are, as ratios measured side by side on this machine.

    python -m experiments.benchmark --json=results/benchmark.json

The rate of a large float32 matrix product, measured in the same rounds, is one.
"""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from experiments import flags, launch, measure
from vagram_jax import envs, files, fit, losses, replay, runner, sac
from vagram_jax.dynamics import DynamicsConfig
from vagram_jax.fit import FitConfig
from vagram_jax.types import Transition

JSON = flags.DEFINE_string("json", None, "Also write the figures to this JSON file.")
SEEDS = flags.DEFINE_integer("seeds", 8, "Seeds that are vmapped, or run in a row.")

# The sizes that MBPO and the paper use.
_OBS_DIM, _ACTION_DIM, _BATCH, _STEPS = 17, 6, 256, 10
_DYNAMICS = DynamicsConfig(hidden=(200,) * 4, num_members=7, head="deterministic")
_SAC = sac.SACConfig(hidden=(256, 256))


def main(env_config, algorithm, run) -> int:
    """Measures, prints a line per figure, and writes them if asked.

    Args:
      env_config: the task of the whole-epoch figures.
      algorithm: the algorithm of the whole-epoch figures.
      run: how many episodes an evaluation has, and the first seed.

    Returns:
      The exit status.
    """
    figures = {"device": launch.device(), "jax": jax.__version__}
    for measured in (_updates, partial(_epochs, env_config, algorithm, run)):
        figures |= (found := measured())
        for name, value in found.items():
            print(f"{name:<48}{value:12.3f}", flush=True)
    if JSON.value:
        files.write_json(JSON.value, figures)
    return 0


def _updates() -> dict[str, float]:
    """One SAC update and one fit step, against the rate of a matrix product."""
    product, product_flops = measure.matmul()
    agent = _sac_steps()
    fits = {name: _fit_steps(name) for name in ("mse", "vagram")}
    sides = {"product": product, "sac": agent[0]}
    sides |= {name: found[0] for name, found in fits.items()}
    took = measure.seconds(sides)
    rate = product_flops / took["product"]
    return {
        "matrix product, Gflop/s": rate / 1e9,
        "SAC update, ms": 1e3 * took["sac"] / _STEPS,
        "SAC update, rate to product's": agent[1] / took["sac"] / rate,
        "fit step (mse), ms": 1e3 * took["mse"] / _STEPS,
        "fit step (mse), rate to product's": fits["mse"][1] / took["mse"] / rate,
        "fit step, VaGraM to MSE, time": took["vagram"] / took["mse"],
    }


def _sac_steps():
    """`_STEPS` updates in one program, and their floating-point operations."""
    key = jax.random.key(0)
    state = sac.init(key, obs_dim=_OBS_DIM, action_dim=_ACTION_DIM, config=_SAC)
    batches = _transitions((_STEPS, _BATCH))
    keys = jax.random.split(jax.random.key(1), _STEPS)

    def steps(state, keys, batches):
        return jax.lax.scan(
            lambda s, x: sac.update(x[0], s, x[1], config=_SAC), state, (keys, batches)
        )

    program = jax.jit(steps)
    flops = measure.matmul_flops(steps, state, keys, batches)
    return lambda: program(state, keys, batches), flops


def _fit_steps(name: str):
    """`_STEPS` steps of the ensemble in one program, weights prepared before."""
    loss, config = losses.get(name), FitConfig()
    sizes = {"obs_dim": _OBS_DIM, "action_dim": _ACTION_DIM}
    state = fit.init(
        jax.random.key(0), **sizes, dynamics_config=_DYNAMICS, config=config
    )
    data = _transitions((4096,))
    agent = sac.init(jax.random.key(1), **sizes, config=_SAC)
    value_fn = sac.value_fn(agent, config=_SAC)
    weights = loss.prepare(data, value_fn) if loss.prepare else None
    rows = jax.random.randint(
        jax.random.key(2), (_STEPS, _DYNAMICS.num_members, _BATCH), 0, 4096
    )

    def step(state, rows):
        return fit.train_step(
            state,
            replay.take(data, rows),
            value_fn,
            None if weights is None else weights[rows],
            loss=loss,
            config=config,
        )

    program = jax.jit(partial(jax.lax.scan, step))
    flops = measure.matmul_flops(partial(jax.lax.scan, step), state, rows)
    return lambda: program(state, rows), flops


def _epochs(env_config, algorithm, run) -> dict[str, float]:
    """Whole epochs of the config's task: seeds side by side and in a row."""
    env = envs.from_config(env_config)
    run, algorithm = runner.check(run, algorithm, env)
    found, calls = {}, {}
    for count in (1, SEEDS.value):
        programs = runner.programs(env, eval_episodes=run.eval_episodes)
        seeds = runner.seeds_of(run.replace(num_seeds=count))
        start, took = measure.compiled(programs.start, seeds, algorithm)
        found[f"compiling the start, {count} seeds, s"] = took
        states = start(seeds, algorithm)
        epoch, took = measure.compiled(programs.epoch, states, algorithm)
        found[f"compiling the epoch, {count} seeds, s"] = took
        evaluate = (states, seeds, np.uint32(0), algorithm)
        _, took = measure.compiled(programs.evaluate, *evaluate)
        found[f"compiling the evaluation, {count} seeds, s"] = took
        found[f"memory of an epoch, {count} seeds, MB a seed"] = _bytes(epoch) / count
        calls[count] = partial(_from_copy, epoch, states, algorithm)
    one, many = calls[1], calls[SEEDS.value]
    sides = {"row": lambda: [one() for _ in range(SEEDS.value)], "vmap": many}
    took = measure.seconds(sides, rounds=3, at_least=0.0)
    name = f"epoch, {SEEDS.value} vmapped seeds to a row of them, time"
    return found | {name: took["vmap"] / took["row"]}


def _from_copy(program, states, algorithm):
    """One epoch; the program takes its argument's memory, so it gets a copy."""
    return program(jax.tree.map(jnp.copy, states), algorithm)[0]


def _bytes(program) -> float:
    """Megabytes of a program's arguments and of its temporary arrays."""
    memory = program.memory_analysis()
    return (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6


def _transitions(shape: tuple[int, ...]) -> Transition:
    draw = np.random.default_rng(0).standard_normal
    return Transition(
        obs=jnp.asarray(draw((*shape, _OBS_DIM)), jnp.float32),
        action=jnp.asarray(np.tanh(draw((*shape, _ACTION_DIM))), jnp.float32),
        reward=jnp.asarray(draw(shape), jnp.float32),
        next_obs=jnp.asarray(draw((*shape, _OBS_DIM)), jnp.float32),
        terminated=jnp.zeros(shape, bool),
        truncated=jnp.zeros(shape, bool),
    )


if __name__ == "__main__":
    flags.run(main, *launch.CONFIGS)
