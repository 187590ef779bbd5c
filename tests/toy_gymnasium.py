"""Gymnasium environments with known behavior, registered when this is imported."""

# ruff: noqa: D102  (the methods are Gymnasium's, described there)

from __future__ import annotations

import time
import weakref
from typing import ClassVar

import gymnasium
import numpy as np
from gymnasium import spaces


class Walk(gymnasium.Env):
    """A noisy walk on a line. It observes position, number of steps and last move.

    Each step draws a random number, so that the state depends on the seed and on every
    action. The class counts its instances and steps.
    """

    action_space = spaces.Box(np.float32([0.0]), np.float32([4.0]))
    observation_space = spaces.Box(-np.inf, np.inf, (3,))
    alive: ClassVar = weakref.WeakSet()
    built = steps = inside = most_inside = 0

    def __init__(self, limit=1e9, truncated_at=0, pause=0.0):
        self._limit, self._truncated_at, self._pause = limit, truncated_at, pause
        Walk.alive.add(self)
        Walk.built += 1

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._obs = np.array([self.np_random.normal(), 0.0, 0.0])
        return self._obs, {}

    def step(self, action):
        Walk.steps += 1
        Walk.inside += 1
        Walk.most_inside = max(Walk.most_inside, Walk.inside)
        time.sleep(self._pause)
        move = float(action[0]) - 2 + self.np_random.normal()
        # In place, so that an observation that is kept without a copy changes.
        self._obs += [move, 1.0, move - self._obs[2]]
        position, steps, _ = self._obs
        Walk.inside -= 1
        terminated, truncated = abs(position) > self._limit, steps == self._truncated_at
        return self._obs, move, terminated, truncated, {}


class Bad(Walk):
    """Fails in the way `how`: at its fifth step for "raise", else at its second."""

    def __init__(self, how):
        super().__init__()
        self._how = how

    def step(self, action):
        obs, reward, terminated, truncated, info = super().step(action)
        if obs[1] == 2 and self._how == "both":
            return obs, reward, True, True, info
        if obs[1] == 5 and self._how == "raise":
            raise ZeroDivisionError("the leg\nis off")
        if obs[1] == 2 and self._how == "nan obs":
            return obs * np.nan, reward, terminated, truncated, info
        if obs[1] == 2 and self._how == "nan reward":
            return obs, np.nan, terminated, truncated, info
        if obs[1] == 2 and self._how == "shape":
            return obs[:2], reward, terminated, truncated, info
        return obs, reward, terminated, truncated, info


class Random(Walk):
    """Not deterministic given its seed, in one of three ways."""

    def __init__(self, how):
        super().__init__()
        self._how, self._own = how, np.random.default_rng()
        self._instance_noise, self._num_resets = self._own.normal(), 0

    def reset(self, *, seed=None, options=None):
        obs, info = super().reset(seed=seed)
        self._num_resets += 1
        noise = {
            "reset noise": self._own.normal(),
            "instance noise": self._instance_noise,
            "reset count": self._num_resets,
        }
        obs += noise[self._how]
        return obs, info


class Shaped(Walk):
    """A walk with other spaces."""

    def __init__(self, **replaced_spaces):
        super().__init__()
        for name, space in replaced_spaces.items():
            setattr(self, f"{name}_space", space)


def _register(name, entry_point=Walk, length=20, **options):
    gymnasium.register(
        f"{name}-v0", entry_point, max_episode_steps=length, kwargs=options
    )


_register("ToyWalk")
_register("ToyLong", length=1000)
_register("ToyLimit", limit=3.0)
_register("ToyTruncated", truncated_at=7)
_register("ToySlow", pause=2e-4)
_register("ToyEndless", length=None)
for how in ("both", "raise", "nan obs", "nan reward", "shape"):
    _register("ToyBad" + how.title().replace(" ", ""), Bad, how=how)
for how in ("reset noise", "instance noise", "reset count"):
    _register("ToyRandom" + how.title().replace(" ", ""), Random, how=how)
_register("ToyDict", Shaped, observation=spaces.Dict({"x": spaces.Box(0, 1, (3,))}))
_register("ToyPixels", Shaped, observation=spaces.Box(0, 1, (3, 3)))
_register("ToyDiscrete", Shaped, action=spaces.Discrete(2))
_register("ToyInteger", Shaped, action=spaces.Box(0, 5, (1,), np.int32))
_register("ToyUnbounded", Shaped, action=spaces.Box(-np.inf, np.inf, (1,)))
