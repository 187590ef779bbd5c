"""Other libraries are imported only when needed, and a missing one is one line."""

from __future__ import annotations

import sys

import adapter_cases as cases
import pytest


@pytest.mark.parametrize(
    ("name", "module", "remedy"),
    [
        ("brax:hopper", "brax.envs", "pip install brax"),
        ("playground:HopperHop", "mujoco_playground", r'"vagram_jax\[playground\]"'),
        ("gymnasium:Hopper-v5", "gymnasium", r'"vagram_jax\[gymnasium\]"'),
    ],
)
def test_a_missing_library_is_reported_in_one_line(name, module, remedy, monkeypatch):
    monkeypatch.setitem(sys.modules, module, None)
    cases.assert_refused(name, f"ModuleNotFoundError.*{remedy}$")


def test_libraries_are_imported_only_when_needed_and_brax_prints_nothing():
    code = """
import importlib.util, sys
import vagram_jax.envs.adapters.brax
import vagram_jax.envs.adapters.gymnasium
import vagram_jax.envs.adapters.playground
libraries = {"brax", "gymnasium", "mujoco", "mujoco_playground"}
assert not libraries & set(sys.modules), libraries & set(sys.modules)
if importlib.util.find_spec("brax"):
    vagram_jax.envs.make("brax:reacher", physics="spring")
"""
    done = cases.run_python(code)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr
    assert "Warning" not in done.stderr
