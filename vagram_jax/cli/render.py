"""Films a trained policy, in the folder of its run.

    vagram render --run=results/hopper/vagram --seed=0

The policy is played on the CPU unless JAX_PLATFORMS is set. The ending of `--output`
selects the format: .mp4, .gif or .html; the default is the best that this machine can
make. The command imports the code of the run's environment: render only runs of people
whom you trust.
"""

from __future__ import annotations

from pathlib import Path

import jax

from vagram_jax import config
from vagram_jax.cli import flags, loading
from vagram_jax.render import film
from vagram_jax.storage import files, results

RUN = flags.DEFINE_string("run", None, "Folder of the run, results/STUDY/RUN.")
OUTPUT = flags.DEFINE_string(
    "output", None, "The file; default: policy-seedN in the folder of the run."
)
WIDTH = flags.DEFINE_integer("width", 480, "Width of a film in pixels; even.")
HEIGHT = flags.DEFINE_integer("height", 360, "Height of a film in pixels; even.")
FPS = flags.DEFINE_float("fps", 30.0, "Highest number of frames per second.")


def main() -> int:
    """Plays the episodes, writes the file and returns the exit status.

    Raises:
      ConfigError: `--run` is missing, or a number is out of range.
    """
    run = RUN.value
    if not run:
        raise config.ConfigError("--run=; the folder of a run, results/STUDY/RUN")
    loading.check_ranges((FPS, 0.1, 100.0))
    kind = _kind(run)
    policy = loading.load(run)
    size = (WIDTH.value, HEIGHT.value)
    film.check(policy.env, kind=kind, size=size)
    print(loading.describe(run, policy))
    episodes = []
    key = jax.random.key(loading.EPISODE_SEED.value)
    for episode in film.play(key, policy, num_episodes=loading.num_episodes(1)):
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
