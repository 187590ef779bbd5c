"""The conversion from mappings to configs: what it accepts, refuses, and says."""

import dataclasses
import json
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct
from hypothesis import given
from hypothesis import strategies as st

from vagram_jax import config


@struct.dataclass(kw_only=True)
class Agent:
    """A nested config with one field of each number."""

    discount: float = config.leaf(0.99, above=0, high=1)
    num_critics: int = config.static(2, low=1)


@struct.dataclass(kw_only=True)
class Run:
    """A config with a field of each kind."""

    loss: str = config.static("vagram", choices=("mle", "mse", "vagram"))
    hidden: tuple[int, ...] = config.static((256, 256), low=1)
    losses: tuple[str, ...] = config.static(("mle",), choices=("mle", "mse"))
    name: str = config.static("run")
    normalise: bool = config.static(True)
    agent: Agent = config.nested(Agent)


@struct.dataclass(kw_only=True)
class Study:
    """A second config for the same flat mapping."""

    num_seeds: int = config.static(4, low=1)
    scale: float = config.leaf(1.0)


def refused(mapping, *config_types):
    with pytest.raises(config.ConfigError) as caught:
        config.split(mapping, *(config_types or (Run,)))
    return str(caught.value)


def test_from_mapping_keeps_the_defaults_of_missing_keys():
    assert config.from_mapping(Run, {}) == Run()
    built = config.from_mapping(Run, {"agent": {"discount": 0.5}})
    assert built == Run(agent=Agent(discount=0.5))


def test_split_gives_each_config_its_own_keys():
    run, study = config.split({"num_seeds": 8, "loss": "mle"}, Run, Study)
    assert (run, study) == (Run(loss="mle"), Study(num_seeds=8))


@pytest.mark.parametrize(
    ("mapping", "message"),
    [
        pytest.param(
            {"agent": {"discont": 0.9}},
            "config: unknown key agent.discont=0.9; did you mean agent.discount?",
            id="unknown nested key",
        ),
        pytest.param(
            {"discount": 0.9},
            "config: unknown key discount=0.9; did you mean agent.discount?",
            id="key of a nested config at the top",
        ),
        pytest.param(
            {"agent": {"hidden": 3}},
            "config: unknown key agent.hidden=3; did you mean hidden?",
            id="key of the top in a nested config",
        ),
        pytest.param(
            {"agnet": {"discount": 0.9}},
            "config: unknown key agnet={'discount': 0.9}; did you mean agent?",
            id="mistyped name of a nested config",
        ),
        pytest.param(
            {"agent.discount": 0.9},
            "config: unknown key agent.discount=0.9; "
            "a dot in a name means nothing here; nest the mapping",
            id="dotted key",
        ),
        pytest.param(
            {"zzz": 1},
            "config: unknown key zzz=1; known: loss, hidden, losses, name, normalise, "
            "agent.discount, agent.num_critics",
            id="unlike any key",
        ),
        pytest.param(
            {7: 1},
            "config: unknown key 7=1; known: loss, hidden, losses, name, normalise, "
            "agent.discount, agent.num_critics",
            id="key that is no text",
        ),
        pytest.param(
            {"agent": 3},
            "config: agent=3; it holds other keys: agent.discount, agent.num_critics",
            id="value for a nested config",
        ),
        pytest.param(
            {"loss": "vagrm"},
            "config: loss='vagrm'; accepted: mle, mse, vagram; did you mean vagram?",
            id="choice spelt wrong",
        ),
        pytest.param(
            {"loss": "?"},
            "config: loss='?'; accepted: mle, mse, vagram",
            id="choice unlike any",
        ),
        pytest.param(
            {"losses": ["mle", "mes"]},
            "config: losses='mes'; accepted: mle, mse; did you mean mse?",
            id="choice in a tuple",
        ),
        pytest.param(
            {"hidden": (64, 0)}, "config: hidden=0; accepted: at least 1", id="low"
        ),
        pytest.param(
            {"agent": {"discount": 0}},
            "config: agent.discount=0.0; accepted: above 0 and at most 1",
            id="above is exclusive",
        ),
        pytest.param(
            {"agent": {"discount": 1.5}},
            "config: agent.discount=1.5; accepted: above 0 and at most 1",
            id="high",
        ),
        pytest.param(
            None,
            "config: None; a mapping of names to values is accepted",
            id="no mapping",
        ),
    ],
)
def test_split_refuses(mapping, message):
    assert refused(mapping) == message


@pytest.mark.parametrize(
    ("key", "value", "kind"),
    [
        ("num_seeds", True, "a whole number"),
        ("num_seeds", 1.5, "a whole number"),
        ("num_seeds", "3", "a whole number"),
        ("num_seeds", None, "a whole number"),
        ("num_seeds", math.inf, "a whole number"),
        ("num_seeds", [3], "a whole number"),
        ("scale", False, "a finite number"),
        ("scale", "1", "a finite number"),
        ("scale", math.nan, "a finite number"),
        ("scale", -math.inf, "a finite number"),
        ("scale", 10**400, "a finite number"),
        ("scale", 1j, "a finite number"),
        ("name", 3, "text"),
        ("hidden", [1.5], "a whole number"),
        ("hidden", [[1]], "a whole number"),
        ("normalise", 1, "true or false"),
        ("normalise", "true", "true or false"),
    ],
)
def test_split_refuses_another_kind_of_value(key, value, kind):
    message = refused({key: value}, Run, Study)
    shown = value[0] if isinstance(value, list) and key == "hidden" else value
    assert message == f"config: {key}={shown!r}; {kind} is accepted"


def test_split_refuses_configs_that_share_a_name():
    with pytest.raises(ValueError, match="num_seeds is a field of Study and of Other"):
        config.split({}, Study, dataclasses.make_dataclass("Other", ["num_seeds"]))


def test_every_refusal_is_a_value_error():
    assert issubclass(config.ConfigError, ValueError)


@pytest.mark.parametrize(
    ("given_value", "stored"),
    [([8, 16], (8, 16)), ((8,), (8,)), (8, (8,)), ([1e3], (1000,)), ([], ())],
)
def test_tuples_come_from_lists_tuples_and_single_values(given_value, stored):
    assert config.from_mapping(Run, {"hidden": given_value}).hidden == stored


@pytest.mark.parametrize(
    "value", [1e6, 1_000_000, np.int64(1_000_000), np.float64(1e6)]
)
def test_whole_numbers_of_any_type_become_int(value):
    stored = config.from_mapping(Study, {"num_seeds": value}).num_seeds
    assert type(stored) is int
    assert stored == 1_000_000


@pytest.mark.parametrize("value", [2, 2.0, np.float32(2), np.int8(2)])
def test_numbers_of_any_type_become_float(value):
    stored = config.from_mapping(Study, {"scale": value}).scale
    assert type(stored) is float
    assert stored == 2.0


@given(
    discount=st.floats(0, 1, exclude_min=True),
    num_critics=st.integers(min_value=1),
    hidden=st.lists(st.integers(min_value=1)),
    loss=st.sampled_from(["mle", "mse", "vagram"]),
    normalise=st.booleans(),
    name=st.text(),
)
def test_to_dict_and_from_mapping_are_inverse_also_through_json(
    discount, num_critics, hidden, loss, normalise, name
):
    built = Run(
        loss=loss,
        hidden=tuple(hidden),
        name=name,
        normalise=normalise,
        agent=Agent(discount=discount, num_critics=num_critics),
    )
    plain = config.to_dict(built)
    assert config.from_mapping(Run, plain) == built
    assert config.from_mapping(Run, json.loads(json.dumps(plain))) == built


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=5,
)
keys = st.sampled_from(["loss", "hidden", "agent", "discount", "normalise"]) | st.text()


@given(st.dictionaries(keys, json_values, max_size=3))
def test_any_mapping_gives_a_config_or_a_config_error(mapping):
    try:
        built = config.from_mapping(Run, mapping)
    except config.ConfigError as error:
        assert str(error).startswith("config: ")
    else:
        assert config.from_mapping(Run, config.to_dict(built)) == built


def test_to_dict_is_plain():
    assert config.to_dict(Run())["agent"] == {"discount": 0.99, "num_critics": 2}


def test_key_names_are_dotted_and_in_order():
    assert config.key_names(Run, prefix="run.")[-3:] == [
        "run.normalise",
        "run.agent.discount",
        "run.agent.num_critics",
    ]


def test_only_leaf_fields_are_leaves_of_the_pytree():
    assert jax.tree.leaves(Run()) == [0.99]


def count_traces(configs):
    """How often a jitted function is traced when called with each config in turn."""
    traces = []

    @jax.jit
    def read(run):
        traces.append(run)
        return run.agent.discount * jnp.ones(run.hidden)

    for one in configs:
        read(one)
    return len(traces)


def test_a_changed_leaf_does_not_compile_again():
    assert count_traces([Run(agent=Agent(discount=d)) for d in (0.9, 0.5, 0.1)]) == 1


def test_a_changed_static_field_compiles_again():
    assert count_traces([Run(hidden=(2,)), Run(hidden=(3,)), Run(hidden=(2,))]) == 2


def test_a_config_from_a_mapping_shares_the_program_of_one_made_by_hand():
    by_mapping = config.from_mapping(Run, {"hidden": [2], "agent": {"discount": 0.5}})
    assert count_traces([Run(hidden=(2,)), by_mapping]) == 1


def test_vmap_maps_a_leaf():
    rates = jnp.array([0.1, 0.2, 0.3])
    many = Agent().replace(discount=rates)
    doubled = jax.vmap(lambda agent: 2 * agent.discount)(many)
    # Doubling is exact in floating point.
    assert (doubled == 2 * rates).all()


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (Run(loss="mee"), "loss='mee'; accepted: mle, mse, vagram; did you mean mse?"),
        (Run(hidden=(64, 0)), "hidden=0; accepted: at least 1"),
        (Run(normalise=1), "normalise=1; true or false is accepted"),
        (
            Run(agent=Agent(discount=2.0)),
            "agent.discount=2.0; accepted: above 0 and at most 1",
        ),
        (
            Run(agent=Agent(discount=jnp.array([0.9, 0.5]))),
            "agent.discount has shape [2]; one number is accepted; make a config for "
            "each",
        ),
        (
            Run(agent=Agent(discount=np.array([0.9]))),
            "agent.discount has shape [1]; one number is accepted; make a config for "
            "each",
        ),
        (
            Run(agent=Agent(discount=jnp.float32(2))),
            "agent.discount=2.0; accepted: above 0 and at most 1",
        ),
        (Run(agent=None), "agent has type NoneType; Agent is accepted"),
        (Run(agent={"discount": 0.5}), "agent has type dict; Agent is accepted"),
        (Run(hidden=[64]), "hidden=[64]; (64,) is accepted"),
        (Run(hidden=64), "hidden=64; (64,) is accepted"),
        (Run(hidden=(64.0,)), "hidden=(64.0,); (64,) is accepted"),
        (Run(agent=Agent(num_critics=2.0)), "agent.num_critics=2.0; 2 is accepted"),
    ],
)
def test_check_fields_refuses_what_a_mapping_could_not_give(made, message):
    with pytest.raises(config.ConfigError) as error:
        config.check_fields(made)
    assert str(error.value) == f"config: {message}"


def test_check_fields_accepts_numbers_that_jax_traces():
    @jax.jit
    def checked(agent):
        config.check_fields(agent)
        return agent.discount

    assert checked(Agent(discount=0.5)) == 0.5
    with pytest.raises(config.ConfigError, match=r"discount has shape \[2\]"):
        checked(Agent(discount=jnp.array([0.9, 0.5])))


@pytest.mark.parametrize("number", [1, 0.5, np.float32(0.5), jnp.float32(0.5)])
def test_check_fields_accepts_any_number_in_place_of_a_float(number):
    config.check_fields(Run(agent=Agent(discount=number, num_critics=np.int64(3))))


@struct.dataclass(kw_only=True)
class Described:
    """A config whose fields are described.

    Attributes:
      kind: the kind, in a text
        of two lines.
      size: the size.
      task: the task.
      agent: the agent.
    """

    kind: str = config.static("a", choices=("a", "b"))
    size: int = config.static(2, low=1, high=9)
    task: str = config.static("x", known={"x": 1, "y": 2})
    agent: Agent = config.nested(Agent)


def test_descriptions_are_those_of_the_docstring_with_what_is_accepted():
    assert config.descriptions(Described) == {
        "kind": "the kind, in a text of two lines. Accepted: a, b.",
        "size": "the size. Accepted: at least 1 and at most 9.",
        "task": "the task. Known: x, y.",
        "agent": "the agent.",
        "agent.discount": "Accepted: above 0 and at most 1.",
        "agent.num_critics": "Accepted: at least 1.",
    }
    assert config.from_mapping(Described, {"task": "z"}).task == "z"
