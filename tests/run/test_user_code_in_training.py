"""A user's code that fails while a run trains: the line, the status, and what stays."""

import types

import jax.numpy as jnp
import pytest
import session_cases as cases
from session_cases import CONFIG, programs_once, train, whole

import vagram_jax
from vagram_jax import losses
from vagram_jax.imagine import ImagineConfig
from vagram_jax.losses import registry
from vagram_jax.run import chunks, devices, failures, session
from vagram_jax.storage import files

__all__ = ["programs_once", "whole"]
pytestmark = pytest.mark.usefixtures("programs_once")

HERE = r"test_user_code_in_training\.py:\d+"


@pytest.fixture(autouse=True)
def _own_registry(monkeypatch):
    monkeypatch.setattr(registry, "LOSSES", dict(losses.LOSSES))


def with_loss(act):
    """A run with a loss that calls `act`; it fails before anything is compiled."""

    @vagram_jax.register("mine")
    def mine(params, batch, value_fn, *, predict):
        return act(batch)

    dynamics = CONFIG.dynamics.replace(hidden=(), num_members=1, num_elites=1)
    imagine = ImagineConfig(termination="none")
    return cases.spec(
        config=CONFIG.replace(loss="mine", dynamics=dynamics, imagine=imagine)
    )


def raises(batch):
    return batch["mass"]


def exits(batch):
    raise SystemExit(0)


def misuses(batch):
    return losses.vagram_loss({}, batch, None)


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (raises, "raised TypeError: "),
        (exits, "raised SystemExit: 0; "),
        # What this package says of a call by the user is of the user's code, too.
        (misuses, "raised ValueError: vagram_loss: params is a dict; "),
    ],
)
def test_a_loss_that_fails_is_named_with_its_line(tmp_path, act, message):
    with pytest.raises(session.RunError, match=rf"^\S*{HERE} {message}") as caught:
        train(tmp_path, with_loss(act))
    assert caught.value.status == 3
    text = str(caught.value)
    assert "\n" not in text
    assert text.endswith(
        "--debug shows the traceback; repair it and continue with --resume"
    )
    reason = files.read_json(cases.folder_of(tmp_path) / failures.FAILURE)["reason"]
    assert reason == text


def test_a_loss_that_returns_no_scalar_has_the_status_of_a_users_code(tmp_path):
    with pytest.raises(vagram_jax.ConfigError, match=rf"{HERE}.*type tuple") as caught:
        train(tmp_path, with_loss(lambda batch: (jnp.ones(()), {})))
    assert caught.value.status == 3


# An old run and --overwrite.


def test_what_memory_can_not_hold_does_not_replace_an_old_run(
    tmp_path, whole, monkeypatch
):
    def refuse(*_, **__):
        raise devices.DeviceError("2 seeds need 3.2 GB; set --seed_chunk=1")

    train(tmp_path)
    before = contents(tmp_path)
    other = cases.spec(config=CONFIG.replace(divergence_slack=7.0))
    with monkeypatch.context() as patch:
        patch.setattr(devices, "check_memory", refuse)
        with pytest.raises(devices.DeviceError, match=r"need 3\.2 GB"):
            train(tmp_path, other, overwrite=True)
    assert contents(tmp_path) == before
    train(tmp_path, overwrite=True)
    cases.assert_same_run(tmp_path, whole)


def test_a_loss_that_fails_does_not_replace_an_old_run(tmp_path):
    train(tmp_path)
    before = contents(tmp_path)
    match = r"; nothing was changed; .*repair it and run the command again$"
    with pytest.raises(session.RunError, match=match) as caught:
        train(tmp_path, with_loss(raises), overwrite=True)
    assert caught.value.status == 3
    assert contents(tmp_path) == before


# A discount of 1.


def undiscounted(name="run", discount=1.0):
    sac = CONFIG.sac.replace(discount=discount)
    return cases.spec(name, config=CONFIG.replace(sac=sac))


def test_a_discount_of_one_without_an_end_warns_once_at_the_start(tmp_path):
    lines = train(tmp_path, undiscounted())
    warnings = [line for line in lines if "discount" in line]
    assert warnings == [
        "run: sac.discount=1, and no episode terminated in 8 steps, so values may grow "
        "without bound; set sac.discount below 1, unless every episode terminates"
    ]
    assert lines.index(warnings[0]) == 1  # before the first line of progress
    cases.unfinish(tmp_path)
    lines = train(tmp_path, undiscounted(), resume=True)
    assert not any("discount" in line for line in lines)


def test_only_runs_whose_episodes_do_not_end_are_named():
    # Three runs of two seeds; the second one is in its second part.
    runs = [
        chunks.RunLanes(undiscounted("a"), None, range(2), slice(0, 2)),
        chunks.RunLanes(undiscounted("b"), None, range(1, 2), slice(2, 3)),
        chunks.RunLanes(undiscounted("c"), None, range(2), slice(3, 5)),
        chunks.RunLanes(undiscounted("d", 0.99), None, range(2), slice(5, 7)),
    ]
    terminated = jnp.zeros((8, 4), bool).at[4, 2].set(True)
    data = types.SimpleNamespace(terminated=terminated)
    replay = types.SimpleNamespace(data=data, size=jnp.full(8, 4))
    state = types.SimpleNamespace(replay=replay)
    lines = chunks.unbounded(state, chunks.Chunk(runs, 8, 0))
    assert [line.split(":")[0] for line in lines] == ["a"]
    assert "no episode terminated in 4 steps" in lines[0]
