"""Measures the speed of the parts of training on this machine.

    vagram benchmark --json=results/benchmark.json

Most figures are ratios: both sides are timed in turn in the same rounds, so that a busy
machine disturbs both. Rates are relative to that of a large float32 matrix product.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from experiments import foreign_models, measure, peers, peers_training, updates
from vagram_jax import (
    dynamics,
    envs,
    imagine,
    sac,
    schedules,
)
from vagram_jax.cli import flags
from vagram_jax.config import ConfigError
from vagram_jax.envs import episodes
from vagram_jax.envs.mujoco import tasks
from vagram_jax.imagine import ImagineConfig
from vagram_jax.run import devices, loop, states, vectorized
from vagram_jax.run.vectorized import Programs
from vagram_jax.storage import checkpoint, files

SUITES = ("updates", "options", "models", "epochs", "seeds", "checkpoints", "envs")
# It takes hours and needs other libraries.
_PEERS = "peers"

JSON = flags.DEFINE_string("json", None, "Also write the figures to this JSON file.")
SEEDS = flags.DEFINE_integer("seeds", 8, "Number of seeds that train at the same time.")
SUITE = flags.DEFINE_list(
    "suite", list(SUITES), f"What to measure, of {', '.join((*SUITES, _PEERS))}."
)
PEERS_FOLDER = flags.DEFINE_string(
    "peers_folder", "results/peers", "The suite peers: the folder of its results."
)
TASKS = flags.DEFINE_list(
    "tasks",
    list(peers_training.TASKS),
    "The suite peers: the tasks to train, each NAME, NAME:STEPS or NAME:STEPS:RETURN; "
    "without any, only the updates are measured.",
)
METHODS = flags.DEFINE_list(
    "methods",
    list(peers_training.METHODS),
    f"The suite peers: what to train, of {', '.join(peers_training.METHODS)}.",
)
MINUTES = flags.DEFINE_float(
    "minutes", 60.0, "The suite peers: time after which the training of a seed stops."
)

# One option, or one combination, at a time; the cost is relative to none.
_AGENT_OPTIONS = {
    "LayerNorm in the critics": {"critic_layer_norm": True},
    "LayerNorm in the actor": {"actor_layer_norm": True},
    "unit features in actor and critics": {
        "actor_unit_features": True,
        "critic_unit_features": True,
    },
    "normalized observations": {"normalize_obs": True},
    "five critics": {"num_critics": 5},
    "the minimum of two of five critics": {"num_critics": 5, "min_critics": 2},
}
_MODEL_OPTIONS = {
    "the next state predicted directly": {"target": "next_obs"},
    "normalized state": {"normalize_state": True},
    "normalized reward": {"normalize_reward": True},
}
_ROLLOUT_OPTIONS = {
    "clipped states": {"clip": True},
    "a limit of disagreement": {"max_disagreement": 1.0},
}


def main(env_config, algorithm, run) -> int:
    """Measures, prints one line per figure, and returns the exit status.

    Raises:
      ConfigError: no suite or an unknown one, or no seeds.
      ResultsError: the folder of the JSON file can't be written.
    """
    for suite in SUITE.value or [""]:
        if suite not in (*SUITES, _PEERS):
            accepted = ", ".join((*SUITES, _PEERS))
            raise ConfigError(f"--suite={suite}; accepted: {accepted}")
    if SEEDS.value < 1:
        raise ConfigError(f"--seeds={SEEDS.value}; at least 1")
    if JSON.value:  # checked before minutes of measuring
        Path(JSON.value).parent.mkdir(parents=True, exist_ok=True)
        files.check_writable(Path(JSON.value).parent)
    devices.use_cpu(None, num_lanes=SEEDS.value)
    configs = env_config, algorithm, run
    suites = {
        "updates": _updates,
        "options": _options,
        "models": foreign_models.ratios,
        "epochs": partial(_epochs, *configs),
        "seeds": partial(_seeds, *configs),
        "checkpoints": partial(_checkpoints, *configs),
        "envs": partial(_envs, env_config),
        _PEERS: _peers,
    }
    figures = {"device": devices.describe(), "jax": jax.__version__}
    for suite in SUITE.value:
        measured = suites[suite]()
        figures |= measured
        for name, value in measured.items():
            print(f"{name:<56}{value:12.3f}", flush=True)
    if JSON.value:
        files.write_json(JSON.value, figures)
    return 0


def _peers() -> dict[str, float]:
    """This package and others: speed, and time and steps to a return."""
    folder = Path(PEERS_FOLDER.value)
    tasks = peers.check(TASKS.value, METHODS.value)
    folder.mkdir(parents=True, exist_ok=True)
    files.check_writable(folder)
    options = {"seeds": SEEDS.value, "minutes": MINUTES.value}
    return peers.measure(folder, tasks, METHODS.value, **options)


def _updates() -> dict[str, float]:
    """The speed of a SAC update and of a fit step, relative to a matrix product."""
    product, product_flops = measure.matmul()
    vagram = updates.fit_steps("vagram")
    steps = {
        "SAC update": updates.sac_steps(),
        "fit step (mse)": updates.fit_steps("mse"),
    }
    calls = {"product": product, "vagram": vagram.call}
    for name, program in steps.items():
        calls |= {name: program.call, f"{name}, products": program.products}
    seconds = measure.seconds(calls, rounds=15)
    rate = product_flops / seconds["product"]
    figures = {"matrix product, Gflop/s": rate / 1e9}
    for name, program in steps.items():
        one = seconds[name] / updates.STEPS
        alone = seconds[f"{name}, products"]
        flops = program.flops / updates.STEPS
        figures |= {
            f"{name}, ms": 1e3 * one,
            f"{name}, rate to product's": flops / one / rate,
            f"{name}, its products alone, rate to product's": flops / alone / rate,
            f"{name} to its products alone, time": one / alone,
        }
    ratio = seconds["vagram"] / seconds["fit step (mse)"]
    return figures | {"fit step, VaGraM to MSE, time": ratio}


def _options() -> dict[str, float]:
    """The time of an update, a fit step and a rollout with each option, to without."""
    figures = {}
    for what, options, program in (
        (
            "SAC update",
            _AGENT_OPTIONS,
            lambda o: updates.sac_steps(updates.SAC.replace(**o)).call,
        ),
        (
            "fit step (mse)",
            _MODEL_OPTIONS,
            lambda o: updates.fit_steps("mse", updates.DYNAMICS.replace(**o)).call,
        ),
        ("rollouts", _ROLLOUT_OPTIONS, _rollouts),
    ):
        calls = {name: program(option) for name, option in options.items()}
        seconds = measure.seconds({"without": program({})} | calls, rounds=9)
        for name in options:
            ratio = seconds[name] / seconds["without"]
            figures[f"{what} with {name}, time"] = ratio
    return figures


def _rollouts(options):
    """A program of rollouts of five steps from 1,000 states."""
    sizes = updates.HALFCHEETAH
    model = dynamics.init_dynamics(jax.random.key(0), **sizes, config=updates.DYNAMICS)
    agent = sac.init(jax.random.key(1), **sizes, config=updates.SAC)
    starts = updates.transitions((1000,)).obs

    @jax.jit
    def program(model, agent):
        return imagine.imagine(
            jax.random.key(2),
            model,
            jnp.arange(5),
            starts,
            act=sac.policy(agent, config=updates.SAC),
            termination=lambda obs, action, next_obs: jnp.bool_(False),
            horizon=jnp.int32(5),
            config=ImagineConfig(horizon=schedules.constant(5), **options),
        )

    return lambda: program(model, agent)


def _epochs(env_config, algorithm, run) -> dict[str, float]:
    """Whole epochs: all seeds at the same time, relative to one seed after another."""
    env = envs.from_config(env_config)
    algorithm = loop.check(run, algorithm, env)
    count, figures, calls = SEEDS.value, {}, {}
    one_device = devices.Layout(mesh=Mesh(np.array(jax.devices()[:1]), (devices.AXIS,)))
    variants = {"1 seed": (1, one_device), f"{count} seeds": (count, one_device)}
    if jax.device_count() > 1:
        name = f"{count} seeds on {jax.device_count()} devices"
        variants[name] = (count, devices.Layout())
    for name, (seeds, layout) in variants.items():
        calls[name] = _epoch((env, algorithm, run), seeds, layout, name, figures)
    one = calls.pop("1 seed")
    calls["row"] = lambda: [one() for _ in range(count)]
    seconds = measure.seconds(calls, rounds=3, at_least=0.0)
    for name in calls.keys() - {"row"}:
        ratio = seconds[name] / seconds["row"]
        figures[f"epoch, {name} to a row of them, time"] = ratio
    return figures


def _seeds(env_config, algorithm, run) -> dict[str, float]:
    """Environment steps per second of all seeds together: 1, 2, 4 and so on seeds."""
    env = envs.from_config(env_config)
    algorithm = loop.check(run, algorithm, env)
    figures, calls, counts = {}, {}, {}
    for count in (2**i for i in range(SEEDS.value.bit_length())):
        layout = devices.Layout(
            mesh=Mesh(np.array(jax.devices()[:count]), (devices.AXIS,))
        )
        name = f"{count} seeds" if count > 1 else "1 seed"
        calls[name] = _epoch((env, algorithm, run), count, layout, name, figures)
        counts[name] = count
    seconds = measure.seconds(calls, rounds=3, at_least=0.0)
    for name, count in counts.items():
        rate = count * algorithm.steps_per_epoch / seconds[name]
        figures[f"{name}, environment steps/s"] = rate
    return figures


def _epoch(task, seeds: int, layout, name: str, figures: dict[str, float]):
    """A call of an epoch after the warm-up; adds its memory and compiling times."""
    env, algorithm, run = task
    programs = _programs(run, env, layout)
    lanes = vectorized.stack_lanes(range(seeds), [algorithm] * seeds)
    lanes = devices.put(lanes, layout, seeds)
    state, fit_model, rest = _compiled(programs, lanes, name, figures)
    per_device = max(_megabytes(fit_model), _megabytes(rest))
    per_seed = per_device * layout.mesh.size / seeds
    figures[f"memory of an epoch, {name}, MB a seed"] = per_seed
    halves = programs._replace(fit_model=fit_model, improve_policy=rest)
    return partial(_epoch_of_copy, halves, state, lanes)


def _compiled(programs: Programs, lanes, name: str, figures: dict[str, float]):
    """States after the warm-up, and the two programs of an epoch; adds figures."""

    def timed(what, program, *args):
        program, seconds = measure.compiled(program, *args)
        figures[f"compiling the {what}, {name}, s"] = seconds
        return program

    state = timed("first state", programs.init, lanes)(lanes)
    state = timed("warm-up", programs.warm_up, state, lanes)(state, lanes)
    fit_model = timed("fit", programs.fit_model, state, lanes)
    fitted, _ = fit_model(state, lanes)
    rest = timed("rest of an epoch", programs.improve_policy, state, fitted, lanes)
    return state, fit_model, rest


def _checkpoints(env_config, algorithm, run) -> dict[str, float]:
    """Epochs with a checkpoint after each, relative to epochs without."""
    env = envs.from_config(env_config)
    algorithm = loop.check(run, algorithm, env)
    layout, seeds = devices.Layout(), loop.seeds_of(run)
    padded = layout.padded(len(seeds))
    lanes = vectorized.stack_lanes(range(padded), [algorithm] * padded)
    lanes = devices.put(lanes, layout, padded)
    programs = _programs(run, env, layout)
    first_states = vectorized.start(programs, lanes)

    def epochs(folder: Path | None):
        writer, now = checkpoint.Writer(), jax.tree.map(jnp.copy, first_states)
        for step in range(1, 4):
            now, _ = vectorized.epoch(programs, now, lanes)
            if folder is not None:
                arrays = states.pack(now)
                writer.save([checkpoint.Piece(folder, range(padded), arrays)], step)
        writer.close()
        return now

    with tempfile.TemporaryDirectory() as folder:
        calls = {
            "without": partial(epochs, None),
            "with": partial(epochs, Path(folder)),
        }
        seconds = measure.seconds(calls, rounds=5, at_least=0.0)
        size = sum(path.stat().st_size for path in Path(folder).rglob("*"))
    return {
        "checkpoint, MB a seed": size / checkpoint.KEPT / padded / 1e6,
        "epoch with a checkpoint to one without, time": (
            seconds["with"] / seconds["without"]
        ),
    }


def _envs(env_config) -> dict[str, float]:
    """Steps per second of a MuJoCo task, with each physics and in Gymnasium."""
    name = env_config.env if env_config.env in tasks.GYMNASIUM else "hopper"
    # MJX is slow on a CPU, where more of its steps would take most of the time.
    length = {"c": 200, "mjx": 200 if jax.default_backend() != "cpu" else 20}
    steps = length | {"Gymnasium": length["c"]}
    figures = {}
    for count in (1, 4, 16, 64):
        calls = {
            physics: _env_steps(
                envs.make(name, physics=physics), count, length[physics]
            )
            for physics in length
        }
        calls["Gymnasium"] = _gymnasium_steps(name, count, length["c"])
        seconds = measure.seconds(calls, rounds=5)
        rates = {side: count * steps[side] / seconds[side] for side in seconds}
        where = f"{name}, {count} side by side"
        figures |= {f"{where}, {side}, steps/s": rate for side, rate in rates.items()}
        figures[f"{where}, c to Gymnasium, rate"] = rates["c"] / rates["Gymnasium"]
    return figures


def _env_steps(env, count: int, length: int):
    """A program of `length` steps of `count` environments, as in training."""

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

    first_devices = np.array(jax.local_devices()[:count])
    layout = devices.Layout(mesh=Mesh(first_devices, (devices.AXIS,)))
    seeds = devices.put(np.arange(count, dtype=np.uint32), layout, count)
    program = devices.over_lanes(steps, layout, in_axes=(0,))
    return lambda: program(seeds)


def _gymnasium_steps(name: str, count: int, length: int):
    """A function that makes `length` steps of `count` environments of Gymnasium."""
    import gymnasium

    make = partial(gymnasium.make, tasks.GYMNASIUM[name])
    vector = gymnasium.vector.SyncVectorEnv([make] * count)
    vector.action_space.seed(0)
    actions = [vector.action_space.sample() for _ in range(length)]

    def steps():
        vector.reset(seed=0)
        return [vector.step(action)[1] for action in actions]

    return steps


def _programs(run, env, layout) -> Programs:
    return vectorized.make_programs(
        env,
        layout,
        eval_episodes=run.eval_episodes,
        matmul_precision=run.matmul_precision,
    )


def _epoch_of_copy(programs, state, lanes):
    """One epoch of a copy of the states, whose memory the epoch reuses."""
    return vectorized.epoch(programs, jax.tree.map(jnp.copy, state), lanes)[0]


def _megabytes(program) -> float:
    """Memory of a program's arguments and temporary arrays on a device, in MB."""
    memory = program.memory_analysis()
    return (memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e6
