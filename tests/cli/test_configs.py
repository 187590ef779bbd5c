"""Config files: each variant is a config that its environment and the loop accept."""

from pathlib import Path

import pytest
from absl.testing import flagsaver

from vagram_jax import envs
from vagram_jax.cli import flags
from vagram_jax.envs.mujoco import tasks
from vagram_jax.run import loop

FOLDER = Path(__file__).parents[2] / "experiments" / "configs"
HOPPER = (
    "quick",
    "quick_small",
    "quick_distracted",
    "paper",
    "paper_small",
    "paper_distracted",
)
MUJOCO = ("ant", "halfcheetah", "humanoid", "walker2d")
VARIANTS = [
    *((path.stem, "") for path in sorted(FOLDER.glob("*.py"))),
    *(("hopper", variant) for variant in HOPPER),
    *((name, variant) for name in MUJOCO for variant in ("quick", "paper")),
]


def load(name, variant):
    """The configs of the environment, the algorithm and the run."""
    file = f"vagram_jax/cli/configs/{name}.py" + (f":{variant}" if variant else "")
    with flagsaver.flagsaver():
        return flags.parse(["train", f"--config={file}"], *loop.CONFIGS)


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_a_config_is_accepted_by_its_environment(name, variant):
    env_config, algorithm, run = load(name, variant)
    loop.check(run, algorithm, envs.from_config(env_config))


@pytest.mark.parametrize("name", ["hopper", *MUJOCO])
def test_a_mujoco_config_is_of_the_task_that_its_file_names(name):
    for variant in ("quick", "paper"):
        env_config, _, _ = load(name, variant)
        assert env_config.env == name
        assert envs.resolved(env_config).physics in ("c", "mjx", "mjx_warp")
    assert set(MUJOCO) <= set(tasks.GYMNASIUM)


@pytest.mark.parametrize(("name", "size"), [("ant", 27), ("humanoid", 45)])
def test_contact_forces_are_left_out_of_what_a_model_predicts(name, size):
    for variant in ("quick", "paper"):
        env_config, _, _ = load(name, variant)
        assert env_config.observation == "truncated"
        assert envs.from_config(env_config).observation_size == size


def test_small_and_distracted_variants_differ_in_that_alone():
    for base in ("quick", "paper"):
        env, algorithm, run = load("hopper", base)
        small = load("hopper", f"{base}_small")
        assert small[1].dynamics.hidden < algorithm.dynamics.hidden
        assert small == (env, algorithm.replace(dynamics=small[1].dynamics), run)
        assert small[1].dynamics.replace(hidden=()) == algorithm.dynamics.replace(
            hidden=()
        )
        distracted, _, _ = load("hopper", f"{base}_distracted")
        assert distracted.distractors == 15
        assert distracted.replace(distractors=0, distractor_kind="chaotic") == env


@pytest.mark.parametrize(("name", "variant"), [("hopper", "qick"), ("ant", "x")])
def test_an_unknown_variant_is_answered_with_the_known_ones(name, variant):
    accepted = f"{variant!r}; accepted: .*quick.*paper"
    with pytest.raises(flags.UsageError, match=accepted):
        load(name, variant)
