"""Shows what a trained policy does: a film or a page in the folder of its run.

    python -m vagram_jax.cli.render --run=results/hopper/vagram --seed=0

It plays on the CPU, unless JAX_PLATFORMS says otherwise. The ending of `--output`
decides the kind: .mp4, .gif or .html; without it, it is the best that can be made here.
The code of the run's environment is imported: show the runs of people whom you trust.
"""

from __future__ import annotations

import sys
from pathlib import Path

import jax

from vagram_jax import config
from vagram_jax.cli import flags
from vagram_jax.render.film import film as render
from vagram_jax.run import policies
from vagram_jax.storage import files, results

RUN = flags.DEFINE_string("run", None, "Folder of the run, results/STUDY/RUN.")
SEED = flags.DEFINE_integer("seed", None, "Whose policy; the run's first if none.")
EPISODES = flags.DEFINE_integer("episodes", 1, "How many, one after the other.")
EPISODE_SEED = flags.DEFINE_integer("episode_seed", 0, "What they start from.")
OUTPUT = flags.DEFINE_string(
    "output", None, "The file; policy-seedN in the run's folder if none."
)
WIDTH = flags.DEFINE_integer("width", 480, "Of a film, in pixels; even.")
HEIGHT = flags.DEFINE_integer("height", 360, "Of a film, in pixels; even.")
FPS = flags.DEFINE_float("fps", 30.0, "How many frames a second has, at most.")

_RANGES = (
    (EPISODES, 1, 1000),
    (EPISODE_SEED, 0, 2**31),
    (FPS, 0.1, 100.0),
)


def main() -> int:
    """Plays, draws and writes.

    Returns:
      The exit status.

    Raises:
      ConfigError: no `--run`, or a number out of range.
    """
    if not RUN.value:
        raise config.ConfigError("--run=; the folder of a run, results/STUDY/RUN")
    for flag, low, high in _RANGES:
        if not low <= flag.value <= high:
            raise config.ConfigError(f"--{flag.name}={flag.value}; {low} to {high}")
    kind = _kind()
    if not jax.config.jax_platforms:
        # A GPU would lend most of its memory to a few small steps.
        jax.config.update("jax_platforms", "cpu")
    policy = policies.load_policy(RUN.value, SEED.value, report=_tell)
    size = (WIDTH.value, HEIGHT.value)
    render.check(policy.env, kind=kind, size=size)
    print(_description(policy))
    played = []
    key = jax.random.key(EPISODE_SEED.value)
    for episode in render.play(key, policy, num_episodes=EPISODES.value):
        played.append(episode)
        steps = len(episode.poses) - 1
        print(f"return {episode.total:.6g} in {steps} steps", flush=True)
    made = render.picture(policy.env, played, kind=kind, size=size, fps=FPS.value)
    path = Path(OUTPUT.value or results.picture_path(RUN.value, policy.seed, made.kind))
    files.write_bytes(path, made.data)
    print(f"{path}: {made.note}")
    return 0


def _kind() -> str | None:
    """The kind that `--output` asks for, if a file could be written there."""
    if OUTPUT.value is None:
        files.check_writable(RUN.value)
        return None
    path = Path(OUTPUT.value)
    kind = path.suffix.removeprefix(".").lower()
    if kind not in render.KINDS:
        endings = ", ".join(f".{known}" for known in render.KINDS)
        raise config.ConfigError(f"--output={path}; it must end in one of {endings}")
    files.check_writable(path.parent)
    if not path.parent.is_dir():
        raise files.ResultsError(f"{path.parent}: no such folder; make it first")
    return kind


def _description(policy: policies.Policy) -> str:
    """Whose policy it is, and how long it has trained."""
    run = Path(RUN.value).resolve()
    end = f", diverged at {policy.diverged_at}" if policy.diverged_at else ""
    steps = f"trained for {policy.env_steps} steps{end}"
    return f"{run.parent.name}/{run.name}, seed {policy.seed}, {steps}"


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    flags.run(main)
