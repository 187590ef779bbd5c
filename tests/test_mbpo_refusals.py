"""What the loop refuses before anything is compiled, each in one line."""

import mbpo_cases as cases
import probe_envs
import pytest

from vagram_jax import config, mbpo, schedules

CONFIG, PLAIN_SAC = cases.CONFIG, cases.PLAIN_SAC


def with_part(part, **fields):
    return CONFIG.replace(**{part: getattr(CONFIG, part).replace(**fields)})


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (CONFIG.replace(loss="vagrm"), r"'vagrm'; known: .*mle.*did you mean vagram\?"),
        (
            with_part("dynamics", num_elites=3),
            r"num_elites=3; at most dynamics\.num_members=2",
        ),
        (
            PLAIN_SAC.replace(real_fraction=schedules.constant(0.5)),
            r"real_fraction=0\.5; .*\(loss=none\) only 1 is possible",
        ),
        (
            PLAIN_SAC.replace(real_fraction=schedules.Schedule(1.0, 0.5, 0.0, 9.0)),
            r"real_fraction=\[1\.0, 0\.5, 0\.0, 9\.0\]; .* only 1 is possible",
        ),
        (
            CONFIG.replace(loss="mle"),
            "head='deterministic'; loss='mle' needs a variance",
        ),
        (CONFIG.replace(loss="vagram_nll"), "loss='vagram_nll' needs a variance"),
        (
            CONFIG.replace(loss="sample_weighted"),
            r"loss='sample_weighted'; it reads batch\.weight, which training does",
        ),
        (
            with_part("weights", gradient_coef=schedules.constant(0.0)),
            "gradient_coef=0 and mse_coef=0 make all weights zero",
        ),
        (
            CONFIG.replace(replay_capacity=9),
            "replay_capacity=9; at least warmup_steps=10",
        ),
    ],
)
def test_check_refuses_in_one_line(algorithm, message):
    with pytest.raises(config.ConfigError, match=message) as caught:
        mbpo.check(algorithm, cases.WALK)
    assert "\n" not in str(caught.value)


def test_check_refuses_imagination_without_a_termination_function():
    with pytest.raises(config.ConfigError) as caught:
        mbpo.check(with_part("imagine", termination="env"), probe_envs.Salary())
    assert str(caught.value) == (
        "config: imagine.termination='env'; Salary has no method termination(obs, "
        "action, next_obs); add one, or set imagine.termination to auto or learned, or "
        "to none if no episode terminates"
    )


@pytest.mark.parametrize(
    "algorithm",
    [
        with_part("imagine", termination="learned"),
        with_part("imagine", termination="none"),
        PLAIN_SAC.replace(imagine=CONFIG.imagine.replace(termination="env")),
    ],
)
def test_check_accepts_an_environment_without_termination_if_none_is_needed(
    algorithm,
):
    assert mbpo.check(algorithm, probe_envs.Salary()) == algorithm


@pytest.mark.parametrize(
    ("loss", "head"),
    [
        ("vagram", "deterministic"),
        ("mle", "gaussian"),
        ("vagram_nll", "gaussian"),
        ("calibrated_vaml", "gaussian"),
        ("muzero", "deterministic"),
    ],
)
def test_check_resolves_the_head_that_a_loss_needs(loss, head):
    algorithm = with_part("dynamics", head="auto").replace(loss=loss)
    assert mbpo.check(algorithm, cases.WALK).dynamics.head == head


def test_check_keeps_a_gaussian_head_that_the_loss_does_not_need():
    algorithm = with_part("dynamics", head="gaussian")
    assert mbpo.check(algorithm, cases.WALK).dynamics == algorithm.dynamics


@pytest.mark.parametrize(
    ("algorithm", "env", "way"),
    [
        (CONFIG, cases.WALK, "env"),
        (CONFIG, probe_envs.Salary(), "learned"),
        (PLAIN_SAC, probe_envs.Salary(), "env"),  # as in earlier records; not read
    ],
)
def test_auto_learns_the_termination_where_the_task_has_no_function(
    algorithm, env, way
):
    assert algorithm.imagine.termination == "auto"
    assert mbpo.check(algorithm, env).imagine.termination == way
