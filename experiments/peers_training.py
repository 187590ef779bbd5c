"""Trains an agent of this package or of SBX, and records its returns and its time.

All methods are recorded in the same way: every so many environment steps the clock
stops, and `evaluate.returns` plays episodes of Gymnasium's task with the deterministic
policy, from the same start states for every method.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import importlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from vagram_jax import envs, evaluate, sac
from vagram_jax.cli import configs
from vagram_jax.config import ConfigError
from vagram_jax.run import devices, loop, vectorized

EPISODES = 10
"""Episodes of an evaluation."""

_COMPILE_EVENTS = tuple(
    f"/jax/core/compile/{stage}_duration"
    for stage in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)


class Task(NamedTuple):
    """A task, and how long it is trained.

    Attributes:
      name: of the config of this package.
      gymnasium: its name in Gymnasium.
      steps: environment steps of a seed.
      target: the return to reach.
      eval_every: environment steps between two evaluations.
    """

    name: str
    gymnasium: str
    steps: int
    target: float
    eval_every: int


TASKS = {
    "pendulum": Task("pendulum", "Pendulum-v1", 5_000, -200.0, 250),
    # A Hopper that stands still for a whole episode has a return of 1,000.
    "hopper": Task("hopper", "Hopper-v5", 100_000, 2_000.0, 1_000),
}

# The settings that RL Baselines3 Zoo publishes, for Hopper-v3 (SAC) and Hopper-v4
# (CrossQ). SBX's defaults complete them.
_PUBLISHED: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "sbx_sac": (
        "SAC",
        {
            "pendulum": {"learning_rate": 1e-3},
            "hopper": {"learning_starts": 10_000},
        },
    ),
    "sbx_crossq": (
        "CrossQ",
        {
            "pendulum": {"policy_delay": 2, "policy_kwargs": {"net_arch": [256, 256]}},
            "hopper": {
                "learning_starts": 5_000,
                "policy_kwargs": {"net_arch": {"pi": [256, 256], "qf": [2048, 2048]}},
            },
        },
    ),
}

OURS = ("vagram", "mle", "sac")
"""The methods of this package, by loss; their seeds train together."""

METHODS = (*OURS, *_PUBLISHED)
"""All methods; the seeds of SBX's train one after the other."""

_MeanReturn = Callable[[int, Any], float]


class Clock:
    """Measures the seconds of training, and how many of them went into compiling."""

    def __init__(self):
        self._before, self._began = 0.0, time.monotonic()
        self._compiling: list[tuple[float, float]] = []
        jax.monitoring.register_event_duration_secs_listener(self._listen)

    @property
    def seconds(self) -> float:
        """Seconds so far, without those of `paused` blocks."""
        if self._began is None:
            return self._before
        return self._before + time.monotonic() - self._began

    @property
    def compile_seconds(self) -> float:
        """Those of `seconds` in which JAX traced or compiled a program."""
        total, end = 0.0, 0.0
        for start, stop in sorted(self._compiling):  # traces contain other traces
            total += max(0.0, stop - max(start, end))
            end = max(end, stop)
        return total

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stops the clock during the block."""
        self._before, self._began = self.seconds, None
        try:
            yield
        finally:
            self._began = time.monotonic()

    def _listen(self, event: str, seconds: float, **_: Any) -> None:
        if self._began is not None and event in _COMPILE_EVENTS:
            now = time.monotonic()
            self._compiling.append((now - seconds, now))


class Recorder:
    """Records the learning curves of seeds that train together.

    Args:
      seeds: the seeds.
      task: gives the steps between two evaluations.
      mean_return: `(index, policy)` to a mean return, from `evaluation`.
      max_seconds: time after which training stops.

    Attributes:
      clock: the clock of training.
      curves: one per seed; rows of `env_steps`, `return`, `seconds` and
        `compile_seconds`.
    """

    def __init__(
        self,
        seeds: Sequence[int],
        task: Task,
        mean_return: _MeanReturn,
        max_seconds: float,
    ):
        self.clock = Clock()
        self.curves: dict[int, list[dict[str, Any]]] = {seed: [] for seed in seeds}
        self._every, self._mean_return = task.eval_every, mean_return
        self._max_seconds, self._index = max_seconds, 0

    def goes_on(self, env_steps: int, policies: Callable[[], Sequence[Any]]) -> bool:
        """Evaluates if it is due, and returns whether there is time left.

        Args:
          env_steps: of each seed.
          policies: returns a policy per seed, None for one that has diverged.
        """
        if env_steps // self._every > self._index:
            self._index = env_steps // self._every
            with self.clock.paused():
                self._record(env_steps, policies())
        return self.clock.seconds < self._max_seconds

    def _record(self, env_steps: int, policies: Sequence[Any]) -> None:
        for curve, act in zip(self.curves.values(), policies, strict=True):
            value = None if act is None else self._mean_return(self._index, act)
            row = {
                "env_steps": env_steps,
                "return": value,
                "seconds": self.clock.seconds,
                "compile_seconds": self.clock.compile_seconds,
            }
            curve.append(row)


def evaluation(task: Task, num_episodes: int = EPISODES) -> _MeanReturn:
    """Returns a function of an index and a policy that returns its mean return.

    Evaluations of one index play from the same start states. A policy is a pytree, as
    `evaluate.returns` takes it.
    """
    env = envs.make(f"gymnasium:{task.gymnasium}")
    options = {"env": env, "num_episodes": num_episodes}
    play = jax.jit(lambda key, act: evaluate.returns(key, act, **options)[0])

    def mean_return(index, act):
        key = jax.random.fold_in(jax.random.key(20), index)
        return float(np.mean(play(key, act)))

    return mean_return


def train(
    method: str, task: Task, seeds: Sequence[int], minutes: float
) -> dict[int, dict[str, Any]]:
    """Trains seeds of a method and returns what is recorded of each.

    Args:
      method: one of `METHODS`.
      task: the task.
      seeds: the seeds; several only for the methods in `OURS`.
      minutes: time that training may take per seed.

    Returns:
      Seeds to the fields of a file, see `peers`.
    """
    # Every training compiles all that it runs, as that of a command of its own would.
    jax.clear_caches()
    max_seconds = 60.0 * minutes * len(seeds)
    recorder = Recorder(seeds, task, _evaluation(task), max_seconds)
    if method in OURS:
        settings = train_ours(method, task, seeds, recorder)
    else:
        settings = train_sbx(method, task, seeds[0], recorder)
    return {
        seed: {
            "trained_together": list(seeds),
            "settings": settings,
            "curve": curve,
        }
        for seed, curve in recorder.curves.items()
    }


def train_ours(
    method: str, task: Task, seeds: Sequence[int], recorder: Recorder
) -> dict[str, Any]:
    """Trains seeds together with the package's config of the task.

    Args:
      method: one of `OURS`.
      task: the task, without distractors.
      seeds: the seeds.
      recorder: records the curves.

    Returns:
      The settings of the config that the benchmark changed.
    """
    changed = {"distractors": "0"}
    env_config, algorithm, run = configs.load(
        task.name, *configs.CONFIGS, overrides={"loss": method} | changed
    )
    env = envs.from_config(env_config)
    capacity = max(algorithm.replay_capacity, task.steps)
    algorithm = algorithm.replace(replay_capacity=capacity)
    steps = _steps(algorithm.warmup_steps, algorithm.steps_per_epoch, task)
    run = run.replace(total_steps=steps[-1])
    algorithm, layout = loop.check(run, algorithm, env), devices.Layout()
    lanes = vectorized.stack_lanes(seeds, [algorithm] * len(seeds))
    lanes = vectorized.put_padded(lanes, layout, layout.padded(len(seeds)))
    programs = vectorized.make_programs(
        env,
        layout,
        eval_episodes=run.eval_episodes,
        matmul_precision=run.matmul_precision,
    )

    def policies():
        agents, alive = devices.fetch_all((state.agent, state.alive))
        return [
            jax.tree_util.Partial(
                _mean_action, jax.tree.map(lambda x: x[i], agents), config=algorithm.sac
            )
            if alive[i]
            else None
            for i in range(len(seeds))
        ]

    state = vectorized.start(programs, lanes)
    for env_steps in steps:
        if env_steps > steps[0]:
            state, _ = vectorized.epoch(programs, state, lanes)
        jax.block_until_ready(state)
        if not recorder.goes_on(env_steps, policies):
            break
    return changed | {"replay_capacity": capacity}


def train_sbx(method: str, task: Task, seed: int, recorder: Recorder) -> dict[str, Any]:
    """Trains one seed with SBX and its published settings of the task.

    Args:
      method: "sbx_sac" or "sbx_crossq".
      task: the task.
      seed: the seed.
      recorder: records the curve.

    Returns:
      The settings that are not SBX's defaults.
    """
    import gymnasium

    name, published = _PUBLISHED[method]
    settings = published[task.name]
    options = copy.deepcopy(settings)  # SBX changes them
    algorithm = getattr(importlib.import_module("sbx"), name)
    env = gymnasium.make(task.gymnasium)
    model = algorithm("MlpPolicy", env, seed=seed, **options)
    select = type(model.policy).select_action

    def act(actor_state, key, obs):
        return select(actor_state, obs[None])[0]

    def policies():
        return [jax.tree_util.Partial(act, model.policy.actor_state)]

    model.learn(task.steps, lambda *_: recorder.goes_on(model.num_timesteps, policies))
    return settings


def _steps(warmup: int, every: int, task: Task) -> range:
    """The numbers of environment steps after the warm-up and after each epoch."""
    if task.steps < warmup + every:
        raise ConfigError(
            f"--tasks={task.name}:{task.steps}; at least {warmup + every} steps"
        )
    return range(warmup, task.steps + 1, every)


def _mean_action(agent, key, obs, *, config):
    return sac.act_mean(agent, obs, config=config)


# Compiled once per task and kind of policy.
_evaluation = functools.cache(evaluation)
