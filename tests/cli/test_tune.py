"""The command tune: what it trains, what it shows, and what it refuses."""

import shlex
import sys

import commands
import pytest
from command_cases import call
from session_cases import Killed, programs_once

from vagram_jax.analysis import summary
from vagram_jax.cli import train, tune
from vagram_jax.run import vectorized
from vagram_jax.storage import files, results

__all__ = ["call", "programs_once"]
pytest.importorskip("optuna")

SPACE = "--space=sac.discount=0.9:0.99;sac.critic_learning_rate=1e-4:1e-2:log"


def test_a_search_compiles_once_goes_on_after_a_kill_and_names_the_best(
    call, tmp_path, monkeypatch
):
    args = [f"--results={tmp_path}", "--study=tuned", SPACE, "--config.loss=sac"]
    args += ["--trials=3", "--at_once=2", "--seed_chunk=2"]
    made, make, append, lines = [], vectorized.make_programs, files.append_rows, []

    def count_programs(*args, **options):
        made.append(make(*args, **options))
        made[-1].improve_policy.clear_cache()  # other tests share these programs
        return made[-1]

    def append_or_die(path, rows):
        lines.append(path)
        if len(lines) == 22:  # in the third of three runs with nine tables each
            raise Killed
        return append(path, rows)

    monkeypatch.setattr(vectorized, "make_programs", count_programs)
    with monkeypatch.context() as patch:
        patch.setattr(files, "append_rows", append_or_die)
        with pytest.raises(Killed):
            call(tune, *args)
    assert len(made) == 1  # for two batches
    assert made[0].improve_policy._cache_size() == 1
    status, out, err = call(tune, *args)
    assert status == 0, err
    assert "trial-002: resuming from step 8" in out
    assert "trial-000" not in out.split("trial ")[0]

    rows = files.read_rows(tmp_path / "tuned" / "tune.csv")
    names = [run.name for run in results.read_runs(tmp_path / "tuned")]
    assert sorted(row["trial"] for row in rows) == names == [*sorted(names)]
    assert len(names) == 3
    assert {row["state"] for row in rows} == {"complete"}
    assert rows == sorted(rows, key=lambda row: -row["return"])
    _, status_out, _ = commands.call("status", str(tmp_path / "tuned"))
    for row in rows:
        assert summary.format_number(row["return"]) in status_out
        assert 0.9 <= row["sac.discount"] <= 0.99
    # The command that it prints trains the best settings on other seeds.
    words = shlex.split(out.split("used:\n")[1].splitlines()[0])
    assert words[:2] == ["vagram", "train"]
    assert call(train, *words[2:])[0] == 0
    best = results.read_run(tmp_path / "tuned" / rows[0]["trial"]).config
    (again,) = results.read_runs(tmp_path / "tuned-best")
    assert again.config == {**best, "first_seed": 2}


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "--space=: ''; KEY=LOW:HIGH, KEY=LOW:HIGH:log or KEY=VALUE,VALUE is "),
        (["--space=sac.discont=0.9:0.99"], "did you mean sac.discount?"),
        (["--space=sac.discount=0.9:1.5"], "sac.discount=1.5; accepted: "),
        (["--space=loss=mle,nonsense"], "loss='nonsense'; known: "),
        (["--space=batch_size=4.5:8"], "'batch_size=4.5:8'; KEY=LOW:HIGH, "),
        ([SPACE, "--config.sac.discount=0.9"], "--space sets sac.discount; leave one"),
        ([SPACE, "--trials=0"], "--trials=0; at least 1"),
        ([SPACE, "--overwrite"], "--overwrite: a search can't do that; leave it out, "),
        ([SPACE, "--seed_chunk=3"], "--seed_chunk=3: the seeds of a trial train toget"),
        ([SPACE, "--study=a/b"], "study='a/b'"),
        ([SPACE, "--storage=no"], "--storage=no: "),
    ],
)
def test_a_search_that_cannot_be_done_is_one_line_of_error(
    call, tmp_path, args, message
):
    status, out, err = call(tune, f"--results={tmp_path}", *args)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_search_without_optuna_names_the_extra(call, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "optuna", None)
    status, _, err = call(tune, f"--results={tmp_path}", SPACE)
    assert status == 2
    assert err == "tune: optuna is missing; pip install vagram_jax[tune]\n"
