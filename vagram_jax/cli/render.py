"""Films a trained policy, in the folder of its run.

    vagram render --run=results/hopper/vagram --seed=0

The policy is played on the CPU unless JAX_PLATFORMS is set. The ending of `--output`
selects the format: .mp4, .gif or .html; the default is the best that this machine can
make. The command imports the code of the run's environment: render only runs of people
whom you trust.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax

from vagram_jax import config
from vagram_jax.cli import flags
from vagram_jax.render import film
from vagram_jax.run import policies
from vagram_jax.storage import files, results

RUN = flags.DEFINE_string("run", None, "Folder of the run, results/STUDY/RUN.")
SEED = flags.DEFINE_integer("seed", None, "Seed of the policy; default: the first.")
EPISODES = flags.DEFINE_integer("episodes", 1, "Number of episodes.")
EPISODE_SEED = flags.DEFINE_integer("episode_seed", 0, "Seed of the start states.")
OUTPUT = flags.DEFINE_string(
    "output", None, "The file; default: policy-seedN in the folder of the run."
)
WIDTH = flags.DEFINE_integer("width", 480, "Width of a film in pixels; even.")
HEIGHT = flags.DEFINE_integer("height", 360, "Height of a film in pixels; even.")
FPS = flags.DEFINE_float("fps", 30.0, "Highest number of frames per second.")

_RANGES = (
    (EPISODES, 1, 1000),
    (EPISODE_SEED, 0, 2**31),
    (FPS, 0.1, 100.0),
)


def main() -> int:
    """Plays the episodes, writes the file and returns the exit status.

    Raises:
      ConfigError: `--run` is missing, or a number is out of range.
    """
    run = RUN.value
    if not run:
        raise config.ConfigError("--run=; the folder of a run, results/STUDY/RUN")
    for flag, low, high in _RANGES:
        if not low <= flag.value <= high:
            raise config.ConfigError(f"--{flag.name}={flag.value}; {low} to {high}")
    kind = _kind(run)
    if not jax.config.jax_platforms:
        # JAX would reserve most of a GPU's memory for a few small steps.
        jax.config.update("jax_platforms", "cpu")
    policy = policies.load_policy(run, SEED.value, report=_warn)
    size = (WIDTH.value, HEIGHT.value)
    film.check(policy.env, kind=kind, size=size)
    print(_description(run, policy))
    episodes = []
    key = jax.random.key(EPISODE_SEED.value)
    for episode in film.play(key, policy, num_episodes=EPISODES.value):
        episodes.append(episode)
        steps = len(episode.poses) - 1
        print(f"return {episode.total:.6g} in {steps} steps", flush=True)
    picture = film.picture(policy.env, episodes, kind=kind, size=size, fps=FPS.value)
    default = results.picture_path(run, policy.seed, picture.kind)
    path = Path(OUTPUT.value or default)
    # The user may name a folder by a link.
    files.write_bytes(path.parent.resolve() / path.name, picture.data)
    print(f"{path}: {picture.note}")
    return 0


def _kind(run: str) -> str | None:
    """The format of `--output`, after checking that the file can be written."""
    if OUTPUT.value is None:
        files.check_writable(run)
        return None
    path = Path(OUTPUT.value)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in film.KINDS:
        endings = ", ".join(f".{known}" for known in film.KINDS)
        raise config.ConfigError(f"--output={path}; it must end in one of {endings}")
    files.check_writable(path.parent)
    if not path.parent.is_dir():
        raise files.ResultsError(f"{path.parent}: no such folder; make it first")
    return kind


def _description(run: str, policy: policies.Policy) -> str:
    """The run, the seed and the training steps of the policy."""
    folder = Path(run).resolve()
    end = f", diverged at {policy.diverged_at}" if policy.diverged_at else ""
    steps = f"trained for {policy.env_steps} steps{end}"
    return f"{folder.parent.name}/{folder.name}, seed {policy.seed}, {steps}"


def _warn(line: str) -> None:
    print(line, file=sys.stderr)
