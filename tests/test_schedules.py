"""Schedules: values, bounds and plain forms."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vagram_jax import config, schedules
from vagram_jax.schedules import Schedule

RISING = Schedule(1.0, 15.0, 100.0, 200.0)
FALLING = Schedule(1.0, 0.5, 0.0, 100.0)
STEP = Schedule(1.0, 0.0, 10.0, 10.0)


@pytest.mark.parametrize(
    "schedule", [0.3, schedules.constant(0.3)], ids=["number", "schedule"]
)
def test_value_of_a_constant_is_that_number_at_every_step(schedule):
    for step in (0, 10_000):
        np.testing.assert_array_equal(schedules.value(schedule, step), np.float32(0.3))


@pytest.mark.parametrize("schedule", [RISING, FALLING])
def test_value_is_linear_between_its_steps(schedule):
    for step in (0, 50, 100, 150, 200, 999):
        ends = [schedule.first_step, schedule.last_step]
        expected = np.interp(step, ends, [schedule.start, schedule.end])
        np.testing.assert_allclose(schedules.value(schedule, step), expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("step", "expected"), [(0, 1.0), (9, 1.0), (10, 0.0), (11, 0.0)]
)
def test_value_jumps_where_both_steps_are_equal(step, expected):
    assert schedules.value(STEP, step) == expected


def test_value_of_all_schedules_is_one_program():
    run = jax.jit(chex.assert_max_traces(schedules.value, n=1))
    actual = [run(s, jnp.int32(10)) for s in (RISING, STEP, schedules.constant(2.0))]
    np.testing.assert_array_equal(actual, [1.0, 0.0, 2.0])


@pytest.mark.parametrize(
    ("plain", "schedule"),
    [
        (0.5, schedules.constant(0.5)),
        ([0.5], schedules.constant(0.5)),
        ((1, 15, 100, 200), RISING),
        ("1,15,100,200", RISING),
        ("(1.0, 0.0, 10, 10)", STEP),
        (STEP, STEP),
    ],
)
def test_a_config_reads_one_number_or_four(plain, schedule):
    assert config.from_mapping(WholeRange, {"share": plain}).share == schedule


@pytest.mark.parametrize(
    "plain", [(), (1, 2), (1, 2, 3), (1, 2, 6, 5), "1,2", "1,x,3,4", (1, 2, 3, np.nan)]
)
def test_a_config_refuses_any_other_form_by_its_key(plain):
    with pytest.raises(config.ConfigError, match=r"share=.*one number, or four"):
        config.from_mapping(Settings, {"share": plain})


@pytest.mark.parametrize("plain", [-1, (0, 1, 0, 9), (1, 20, 0, 9)])
def test_a_config_checks_both_values_of_a_schedule(plain):
    with pytest.raises(config.ConfigError, match=r"at least 1\.0 and at most 15"):
        config.from_mapping(Settings, {"share": plain})


@pytest.mark.parametrize("schedule", [schedules.constant(2.0), RISING, STEP])
def test_the_plain_form_reads_back_as_the_same_schedule(schedule):
    plain = config.to_dict(Settings(share=schedule))
    assert config.from_mapping(WholeRange, plain).share == schedule


@config.struct.dataclass(kw_only=True)
class Settings:
    """A config with one schedule."""

    share: Schedule = config.leaf(schedules.constant(1.0), low=1.0, high=15.0)


@config.struct.dataclass(kw_only=True)
class WholeRange:
    """A config whose schedule takes any number."""

    share: Schedule = config.leaf(schedules.constant(1.0))
