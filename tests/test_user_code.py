"""The line of a user's code that an exception comes from, in every way it may fail."""

import sys
import warnings

import jax
import pytest

from vagram_jax import user_code

# The text of XLA's error for an exception in a callback; the first frame is of the
# program that started training.
CALLBACK = "INTERNAL: CpuCallback error calling callback: Traceback (most recent call"
IN_A_CALLBACK = f"""{CALLBACK} last):
  File "/home/me/main.py", line 3, in <module>
  File "/venv/lib/python3.11/site-packages/jax/_src/callback.py", line 71, in __call__
  File "/home/me/envs/spring.py", line 12, in _simulate
  File "/venv/lib/python3.11/site-packages/numpy/linalg.py", line 4, in solve
KeyError: 'no
license'"""
IN_OUR_CALLBACK = f"""{CALLBACK} last):
  File "/home/me/main.py", line 3, in <module>
  File "{user_code.__file__}", line 71, in step
BrokenEnvError: env gymnasium:Mine: step raised ValueError: x"""
OURS = """
import warnings
from vagram_jax import user_code

def inner():
    warnings.warn("flat", stacklevel=user_code.stacklevel())

def outer():
    inner()
"""


def caught_in(source, filename="/home/me/mine.py"):
    """The exception of a user's file, as this package catches it."""
    code = compile(source, filename, "exec")
    with pytest.raises((Exception, SystemExit)) as caught:
        # JAX is a library that calls the user's code.
        jax.tree.map(lambda _: exec(code, {}), 0)  # noqa: S102 - tests' own
    return caught.value


@pytest.mark.parametrize(
    ("source", "line"),
    [
        ("\n\n{}['mass']", "KeyError: 'mass' (mine.py:3)"),
        ("import sys\nsys.exit(0)", "SystemExit: 0 (mine.py:2)"),
        ("raise ValueError('two\\nlines')", "ValueError: two (mine.py:1)"),
        ("raise ValueError", "ValueError (mine.py:1)"),
        # The innermost line of the user's, not that of a library.
        ("import json\n\njson.loads('{')", "JSONDecodeError: Expecting property name"),
    ],
)
def test_one_line_names_the_class_the_message_and_the_line(source, line):
    text = user_code.one_line(caught_in(source))
    assert text.startswith(line)
    assert text.endswith(f"(mine.py:{len(source.splitlines())})")


def test_a_file_below_the_working_folder_has_its_path(monkeypatch):
    monkeypatch.chdir("/")
    error = caught_in("1 / 0", filename="/home/me/mine.py")
    assert user_code.raised_at(error) == "home/me/mine.py:1"


def test_a_file_that_can_not_be_parsed_is_named():
    with pytest.raises(SyntaxError) as caught:
        compile("x = (\n", "/home/me/mine.py", "exec")
    assert user_code.raised_at(caught.value) == "mine.py:1"


def test_an_error_without_a_users_code_has_no_line():
    with pytest.raises(RuntimeError) as caught:
        jax.devices("no such platform")
    assert user_code.raised_at(caught.value) is None
    assert user_code.one_line(caught.value) == user_code.reason(caught.value)


def test_a_callback_is_named_by_the_text_of_the_error():
    error = jax.errors.JaxRuntimeError(IN_A_CALLBACK)
    assert user_code.raised_at(error) == "spring.py:12"
    assert user_code.reason(error) == "KeyError: 'no"
    ours = jax.errors.JaxRuntimeError(IN_OUR_CALLBACK)
    assert user_code.raised_at(ours) is None
    expected = "env gymnasium:Mine: step raised ValueError: x"
    assert user_code.reason(ours) == expected


def test_defined_at_names_a_function():
    line = caught_in.__code__.co_firstlineno
    assert user_code.defined_at(caught_in).endswith(f"test_user_code.py:{line}")
    assert user_code.defined_at(len) == "<built-in function len>"


def test_a_warning_names_the_line_of_the_user():
    code = compile(OURS, user_code.__file__, "exec")
    exec(code, names := {})  # noqa: S102 - the code above
    with pytest.warns(UserWarning, match="flat") as caught:
        names["outer"]()
    assert caught[0].filename == __file__


def test_python_is_not_a_users_code():
    folders = [path for path in sys.path if path.endswith("site-packages")]
    assert not user_code._is_library(f"{folders[0]}/my_envs/spring.py")
    assert user_code._is_library(f"{folders[0]}/jax/numpy.py")
    assert user_code._is_library(warnings.__file__)
    assert user_code._is_library("<frozen importlib._bootstrap>")
    assert not user_code._is_library("<ipython-input-1>")
