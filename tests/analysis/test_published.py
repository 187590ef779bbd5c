"""Published learning curves: reading them, and drawing them beside runs."""

import re

import numpy as np
import pytest

from vagram_jax.analysis import published
from vagram_jax.storage.files import ResultsError

HEADER = "algorithm,env,env_steps,mean_return,std_over_seeds,seeds\n"
ROWS = "mbpo,Hopper,5000,200,20,5\nmbpo,Hopper,0,10,1,5\nsac,Ant,0,1.5,0.5,4\n"


def write(tmp_path, text):
    path = tmp_path / "curves.csv"
    path.write_text(text)
    return path


def test_load_sorts_the_steps_of_each_curve(tmp_path):
    curves = published.load(write(tmp_path, HEADER + ROWS))
    assert {env: [c.algorithm for c in group] for env, group in curves.items()} == {
        "hopper": ["mbpo"],
        "ant": ["sac"],
    }
    (curve,) = curves["hopper"]
    np.testing.assert_array_equal(curve.env_steps, [0, 5000])
    np.testing.assert_array_equal(curve.mean, [10, 200])
    np.testing.assert_array_equal(curve.std, [1, 20])
    assert curve.seeds == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no column algorithm; a header and rows with algorithm, env, env_steps"),
        ("algorithm,env\na,b\n", "no column env_steps"),
        (HEADER + "mbpo,Hopper,0,fast,1,5\n", "line 2: mean_return='fast'; a number"),
        (HEADER + "mbpo,Hopper,0\n", "line 2: mean_return=None; a number"),
    ],
)
def test_load_refuses_a_file_in_one_line_that_names_it(tmp_path, text, message):
    path = write(tmp_path, text)
    with pytest.raises(ResultsError, match=re.escape(message)) as caught:
        published.load(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)


def test_load_refuses_a_missing_file(tmp_path):
    with pytest.raises(ResultsError, match="No such file"):
        published.load(tmp_path / "nothing.csv")
