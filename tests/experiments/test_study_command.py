"""The command that runs a study refuses bad arguments in one line."""

import pytest
from absl.testing import flagsaver

from experiments import studies, study
from vagram_jax.cli import flags


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ([], "study=none; one of ablation, "),
        (["capacit"], "did you mean capacity?"),
        (["capacity", "ablation"], "study=capacity ablation; one of"),
        (["capacity", "--first_seed=-1"], "--first_seed=-1; at least 0"),
        (["capacity", "--study_seeds=2"], "--study_seeds=2; at least 3"),
        (["capacity", "--preset=fast"], "preset"),
    ],
)
def test_study_refuses_bad_arguments_in_one_line(args, message, capsys):
    with flagsaver.flagsaver(), pytest.raises(SystemExit) as stopped:
        flags.run(study.main, takes_names=True, argv=["study", *args])
    assert stopped.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_help_lists_every_study():
    for name, description in studies.descriptions().items():
        assert name in study.__doc__
        assert description in study.__doc__
