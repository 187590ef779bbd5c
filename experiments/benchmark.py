"""How fast the pieces are, as ratios measured side by side on this machine.

    python -m experiments.benchmark --json=results/benchmark.json

The rate of a large float32 matrix product, measured in the same rounds, is one.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import measure
from vagram_jax import envs, fit, losses, replay, sac
from vagram_jax.cli import flags, launch
from vagram_jax.config import ConfigError
from vagram_jax.dynamics import DynamicsConfig
from vagram_jax.envs import episodes
from vagram_jax.envs.mujoco import tasks
from vagram_jax.fit import FitConfig
from vagram_jax.run import devices, programs, runner
from vagram_jax.storage import checkpoint, files
from vagram_jax.types import Transition

SUITES = ("updates", "epochs", "checkpoints", "envs")

JSON = flags.DEFINE_string("json", None, "Also write the figures to this JSON file.")
SEEDS = flags.DEFINE_integer("seeds", 8, "Seeds side by side, or in a row.")
SUITE = flags.DEFINE_list("suite", list(SUITES), f"Of {', '.join(SUITES)}.")

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

    Raises:
      ConfigError: an unknown suite.
      ResultsError: the JSON file's folder can't be written.
    """
    if JSON.value:  # before minutes of measuring
        Path(JSON.value).parent.mkdir(parents=True, exist_ok=True)
        files.check_writable(Path(JSON.value).parent)
    devices.use_cpu(None, num_lanes=SEEDS.value)
    figures = {"device": devices.describe(), "jax": jax.__version__}
    if odd := set(SUITE.value) - set(SUITES):
        raise ConfigError(f"--suite={odd.pop()}; accepted: {', '.join(SUITES)}")
    task = env_config, algorithm, run
    measured = {
        "updates": _updates,
        "epochs": partial(_epochs, *task),
        "checkpoints": partial(_checkpoints, *task),
        "envs": partial(_envs, env_config),
    }
    for name in SUITE.value:
        figures |= (found := measured[name]())
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
    took = measure.seconds(sides, rounds=15)
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
    """Whole epochs of the config's task, with seeds in a row and side by side."""
    env = envs.from_config(env_config)
    run, algorithm = runner.check(run, algorithm, env)
    count, found, calls = SEEDS.value, {}, {}
    one_device = devices.Layout(mesh=Mesh(np.array(jax.devices()[:1]), (devices.AXIS,)))
    sides = {"1 seed": (1, one_device), f"{count} seeds": (count, one_device)}
    if jax.device_count() > 1:
        name = f"{count} seeds on {jax.device_count()} devices"
        sides[name] = (count, devices.Layout())
    for name, (seeds, layout) in sides.items():
        compiled = runner.compiled(run, env, layout)
        lanes = programs.lanes(range(seeds), [algorithm] * seeds)
        lanes = devices.put(lanes, layout, seeds)
        states, fit, rest = _compiled(compiled, lanes, name, found)
        a_seed = max(_bytes(fit), _bytes(rest)) * layout.mesh.size / seeds
        found[f"memory of an epoch, {name}, MB a seed"] = a_seed
        halves = compiled._replace(learn_model=fit, learn_policy=rest)
        calls[name] = partial(_from_copy, halves, states, lanes)
    one = calls.pop("1 seed")
    calls["row"] = lambda: [one() for _ in range(count)]
    took = measure.seconds(calls, rounds=3, at_least=0.0)
    for name in calls.keys() - {"row"}:
        found[f"epoch, {name} to a row of them, time"] = took[name] / took["row"]
    return found


def _compiled(of: programs.Programs, lanes, name: str, found: dict[str, float]):
    """States that are warmed up, the halves of an epoch; how long each took goes in."""

    def made(what, program, *args):
        program, seconds = measure.compiled(program, *args)
        found[f"compiling the {what}, {name}, s"] = seconds
        return program

    states = made("first state", of.initialise, lanes)(lanes)
    states = made("warm-up", of.warm_up, states, lanes)(states, lanes)
    fit = made("fit", of.learn_model, states, lanes)
    fitted, _ = fit(states, lanes)
    return states, fit, made("rest of an epoch", of.learn_policy, states, fitted, lanes)


def _checkpoints(env_config, algorithm, run) -> dict[str, float]:
    """The config's own job, an epoch at a time, with checkpoints and without."""
    env = envs.from_config(env_config)
    run, algorithm = runner.check(run, algorithm, env)
    layout, seeds = devices.Layout(), runner.seeds_of(run)
    padded = layout.padded(len(seeds))
    lanes = programs.lanes(range(padded), [algorithm] * padded)
    lanes = devices.put(lanes, layout, padded)
    compiled = runner.compiled(run, env, layout)
    states = programs.start(compiled, lanes)

    def epochs(folder: Path | None):
        writer, now = checkpoint.Writer(), jax.tree.map(jnp.copy, states)
        for step in range(1, 4):
            now, _ = programs.epoch(compiled, now, lanes)
            if folder is not None:
                arrays = checkpoint.pack(now)
                writer.save([checkpoint.Piece(folder, range(padded), arrays)], step)
        writer.close()
        return now

    with tempfile.TemporaryDirectory() as folder:
        sides = {
            "without": partial(epochs, None),
            "with": partial(epochs, Path(folder)),
        }
        took = measure.seconds(sides, rounds=5, at_least=0.0)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*"))
    return {
        "checkpoint, MB a seed": size / checkpoint.KEPT / padded / 1e6,
        "epoch with a checkpoint to one without, time": took["with"] / took["without"],
    }


def _envs(env_config) -> dict[str, float]:
    """Steps a second of a MuJoCo task, on each physics and in Gymnasium."""
    name = env_config.env if env_config.env in tasks.GYMNASIUM else "hopper"
    # MJX is slow on a CPU, where its steps would take most of the time.
    length = {"c": 200, "mjx": 200 if jax.default_backend() != "cpu" else 20}
    found = {}
    for count in (1, 4, 16, 64):
        sides = {
            physics: _env_steps(envs.make(name, physics=physics), count, steps)
            for physics, steps in length.items()
        }
        sides["Gymnasium"] = _gymnasium_steps(name, count, length["c"])
        steps = length | {"Gymnasium": length["c"]}
        took = measure.seconds(sides, rounds=5)
        rates = {side: count * steps[side] / took[side] for side in took}
        where = f"{name}, {count} side by side"
        found |= {f"{where}, {side}, steps/s": rate for side, rate in rates.items()}
        found[f"{where}, c to Gymnasium, rate"] = rates["c"] / rates["Gymnasium"]
    return found


def _env_steps(env, count: int, length: int):
    """`length` steps of `count` environments in one program, as training takes them."""

    def step(state, key):
        key_action, key_reset = jax.random.split(key)
        shape = (env.action_size,)
        action = jax.random.uniform(key_action, shape, minval=-1.0, maxval=1.0)
        state, transition, _ = episodes.step(
            key_reset, state, action, env=env, episode_length=env.episode_length
        )
        return state, transition.reward

    def steps(seed):
        key_start, key_steps = jax.random.split(jax.random.key(seed))
        state = episodes.reset(key_start, env=env)
        return jax.lax.scan(step, state, jax.random.split(key_steps, length))[1]

    used = np.array(jax.local_devices()[:count])
    layout = devices.Layout(mesh=Mesh(used, (devices.AXIS,)))
    seeds = devices.put(np.arange(count, dtype=np.uint32), layout, count)
    program = devices.over_lanes(steps, layout, in_axes=(0,))
    return lambda: program(seeds)


def _gymnasium_steps(name: str, count: int, length: int):
    """The same of Gymnasium's own, one after the other in Python."""
    import gymnasium

    make = partial(gymnasium.make, tasks.GYMNASIUM[name])
    vector = gymnasium.vector.SyncVectorEnv([make] * count)
    vector.action_space.seed(0)
    actions = [vector.action_space.sample() for _ in range(length)]

    def steps():
        vector.reset(seed=0)
        return [vector.step(action)[1] for action in actions]

    return steps


def _from_copy(compiled, states, lanes):
    """One epoch; it takes its argument's memory, so it gets a copy."""
    return programs.epoch(compiled, jax.tree.map(jnp.copy, states), lanes)[0]


def _bytes(program) -> float:
    """Megabytes of a program's arguments and of its temporary arrays, on a device."""
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
