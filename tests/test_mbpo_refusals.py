"""What the loop refuses before anything is compiled, each in one line."""

import mbpo_cases as cases
import probe_envs
import pytest

from vagram_jax import config, imagine, training

CONFIG, PLAIN_SAC = cases.CONFIG, cases.PLAIN_SAC


def with_part(part, **fields):
    return CONFIG.replace(**{part: getattr(CONFIG, part).replace(**fields)})


@pytest.mark.parametrize(
    ("algorithm", "message"),
    [
        (CONFIG.replace(loss="vagrm"), r"'vagrm'; known: .*mle.*did you mean vagram\?"),
        (
            with_part("model", num_elites=3),
            r"num_elites=3; at most model\.num_members=2",
        ),
        (CONFIG.replace(real_fraction=(1.5,)), "real_fraction=1.5; accepted: at least"),
        (CONFIG.replace(real_fraction=(-0.5,)), "real_fraction=-0.5; accepted: at le"),
        (
            CONFIG.replace(real_fraction=(0.5, 2.0, 0.0, 10.0)),
            "real_fraction=2.0; accepted: at least 0 and at most 1",
        ),
        (
            CONFIG.replace(real_fraction=(-1.0, 0.5, 0.0, 10.0)),
            "real_fraction=-1.0; accepted: at least 0 and at most 1",
        ),
        (CONFIG.replace(real_fraction=()), r"real_fraction=\(\); one number, or four"),
        (CONFIG.replace(real_fraction=(1.0, 0.5)), "one number, or four"),
        (CONFIG.replace(real_fraction=(1.0, 0.5, 9.0, 9.0)), "in rising order"),
        (with_part("imagine", horizon=(1, 2, 3)), r"imagine\.horizon=\(1, 2, 3\); one"),
        (with_part("imagine", horizon=(1, 2, 9, 5)), "in rising order"),
        (with_part("imagine", horizon=(0,)), "lengths of at least 1"),
        (with_part("imagine", horizon=(0, 5, 0, 9)), "lengths of at least 1"),
        (
            PLAIN_SAC.replace(real_fraction=(0.5,)),
            r"real_fraction=\(0.5,\); .*\(loss=none\) only 1 is possible",
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
            CONFIG.replace(replay_capacity=9),
            "replay_capacity=9; at least warmup_steps=10",
        ),
    ],
)
def test_check_refuses_in_one_line(algorithm, message):
    with pytest.raises(config.ConfigError, match=message) as caught:
        training.check(algorithm, cases.WALK)
    assert "\n" not in str(caught.value)


def test_check_refuses_imagination_without_a_termination_function():
    with pytest.raises(config.ConfigError) as caught:
        training.check(CONFIG, probe_envs.Salary())
    assert str(caught.value) == (
        "config: imagine.termination='env'; Salary has no method termination(obs, "
        "action, next_obs); add one, or set imagine.termination to learned, or to none "
        "if no episode terminates"
    )


@pytest.mark.parametrize(
    "algorithm",
    [
        with_part("imagine", termination="learned"),
        with_part("imagine", termination="none"),
        PLAIN_SAC,
    ],
)
def test_check_accepts_an_environment_without_termination_where_none_is_asked(
    algorithm,
):
    assert training.check(algorithm, probe_envs.Salary()) == algorithm


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
    algorithm = with_part("model", head="auto").replace(loss=loss)
    assert training.check(algorithm, cases.WALK).dynamics.head == head


def test_check_keeps_a_gaussian_head_that_the_loss_can_do_without():
    algorithm = with_part("model", head="gaussian")
    assert training.check(algorithm, cases.WALK) == algorithm


def test_check_accepts_schedules_at_their_limits():
    algorithm = with_part("imagine", horizon=(5, 1, 0, 1))
    algorithm = algorithm.replace(real_fraction=(0.0, 1.0, 0.0, 1.0))
    assert training.check(algorithm, cases.WALK) == algorithm
    assert imagine.max_horizon(algorithm.imagine) == 5
