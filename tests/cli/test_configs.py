"""The configs of the tasks: found by name, and accepted by environment and training."""

import dataclasses
import functools
from pathlib import Path

import pytest

from vagram_jax import config, envs
from vagram_jax.cli import configs
from vagram_jax.envs.mujoco import tasks
from vagram_jax.run import loop

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
    # dm_control may not fit the MuJoCo here; `test_dmc.py` checks its config.
    *(name for name in configs.names() if name != "dmc"),
    *(f"hopper:{variant}" for variant in HOPPER),
    *(f"{name}:{variant}" for name in MUJOCO for variant in ("quick", "paper")),
]


@functools.cache
def environment(env_config):
    return envs.from_config(env_config)


def test_names_are_the_files_with_a_config():
    files = Path(configs.__file__).parent.glob("*.py")
    assert {*configs.names(), "__init__", "mujoco"} == {path.stem for path in files}
    assert {"pendulum", "cartpole", "hopper", *MUJOCO} <= set(configs.names())


@pytest.mark.parametrize("name", VARIANTS)
def test_a_config_is_accepted_by_its_environment_and_training(name):
    env_config, algorithm, run_config = configs.load(name)
    loop.check(run_config, algorithm, environment(env_config))


@pytest.mark.parametrize("name", ["hopper", *MUJOCO])
def test_a_mujoco_config_is_of_the_task_of_its_name(name):
    for variant in ("quick", "paper"):
        env_config, _, _ = configs.load(f"{name}:{variant}")
        assert env_config.env == name
        assert envs.resolved(env_config).physics in ("c", "mjx", "mjx_warp")
    assert set(MUJOCO) <= set(tasks.GYMNASIUM)


@pytest.mark.parametrize(("name", "size"), [("ant", 27), ("humanoid", 45)])
@pytest.mark.parametrize("variant", ["quick", "paper"])
def test_a_model_does_not_predict_contact_forces(name, size, variant):
    env_config, _, _ = configs.load(f"{name}:{variant}")
    assert env_config.observation == "truncated"
    assert environment(env_config).observation_size == size


@pytest.mark.parametrize("base", ["quick", "paper"])
def test_small_and_distracted_variants_differ_only_in_that(base):
    env, algorithm, run_config = configs.load(f"hopper:{base}")
    small = configs.load(f"hopper:{base}_small")
    hidden = small[1].dynamics.hidden
    assert hidden < algorithm.dynamics.hidden
    dynamics = algorithm.dynamics.replace(hidden=hidden)
    assert small == (env, algorithm.replace(dynamics=dynamics), run_config)
    distracted, _, _ = configs.load(f"hopper:{base}_distracted")
    assert distracted.distractors == 15
    assert distracted.replace(distractors=0, distractor_kind="chaotic") == env


def test_the_paper_settings_have_schedules_of_four_numbers():
    _, algorithm, _ = configs.load("hopper:paper")
    settings = config.to_dict(algorithm)
    assert settings["imagine"]["horizon"] == [1, 5, 20_000, 150_000]
    assert settings["real_fraction"] == [1.0, 0.05, 0.0, 20_000.0]
    # Plain squared error is added until the step 11,000 and not after it.
    assert settings["weights"]["mse_coef"] == [1.0, 0.0, 11_000.0, 11_000.0]
    assert settings["gradients"]["clip_quantile"] == 0.95
    assert settings["sac"]["target_entropy"] == -1.0


def test_override_sets_optional_keys_and_schedules_from_text():
    changes = {"sac.target_entropy": "none", "imagine.horizon": "1,5,20000,150000"}
    _, algorithm, _ = configs.override(configs.load("hopper"), changes)
    settings = config.to_dict(algorithm)
    assert settings["sac"]["target_entropy"] is None
    assert settings["imagine"]["horizon"] == [1, 5, 20_000, 150_000]
    # What a run records can be read again.
    assert config.from_mapping(type(algorithm), settings) == algorithm


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hoper", r"^--config=hoper: no such config; did you mean hopper\? accepted: "),
        (
            "zzz",
            "^--config=zzz: no such config; accepted: ant, cartpole, dmc, gymnasium, ",
        ),
        ("mujoco", "^--config=mujoco: no such config; "),
        ("configs/pendulm.py", r"such config; did you mean .*, or a Python file"),
        ("hopper:qick", r"variant='qick'; accepted: .*quick.*paper.*mean quick\?$"),
        ("ant:x", "^--config=ant:x: variant='x'; accepted: quick, paper$"),
        ("pendulum:x", "^--config=pendulum:x: variant='x'; it has no variants$"),
    ],
)
def test_load_refuses_an_unknown_config_and_lists_the_known_ones(name, message):
    with pytest.raises(config.ConfigError, match=message):
        configs.load(name)


def choices_of(config_type, prefix=""):
    """The accepted or known names of each key that has any."""
    choices = {}
    for field in dataclasses.fields(config_type):
        accepts, inner = field.metadata.get("accepts", {}), field.default_factory
        choices[prefix + field.name] = [
            *accepts.get("choices", ()),
            *accepts.get("known", ()),
        ]
        if dataclasses.is_dataclass(inner):
            choices |= choices_of(inner, prefix=f"{prefix}{field.name}.")
    return choices


def test_every_key_has_a_description_with_its_choices():
    choices = {}
    for config_type in loop.CONFIGS:
        choices |= choices_of(config_type)
    assert {"loss", "env", "physics", "dynamics.head", "sac.activation"} <= {
        key for key in choices if choices[key]
    }
    groups = configs.options(configs.load("hopper")).values()
    options = [option for group in groups for option in group]
    assert [x.name for x in options if x.text.startswith(("Acc", "Kno"))] == []
    assert [x.name for x in options if not x.text] == []
    for option in options:
        names = choices[option.name.removeprefix("config.")]
        assert option.text.endswith(f" {', '.join(names)}." if names else ".")
