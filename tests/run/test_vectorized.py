"""The compiled programs of a run."""

import jax
import mbpo_cases
import session_cases as cases

from vagram_jax.run import devices, vectorized


def test_programs_have_the_precision_of_the_run():
    algorithm = mbpo_cases.CONFIG
    for precision in ("highest", "default"):
        programs = vectorized.make_programs(
            mbpo_cases.WALK, cases.LAYOUT, eval_episodes=1, matmul_precision=precision
        )
        own = devices.put(vectorized.stack_lanes([0], [algorithm]), cases.LAYOUT, 1)
        state = jax.eval_shape(programs.init, own)
        fitted, _ = jax.eval_shape(programs.fit_model, state, own)
        for program, args in (
            (programs.fit_model, (state, own)),
            (programs.improve_policy, (state, fitted, own)),
        ):
            text = str(program.trace(*args).jaxpr)  # traced for the second time
            assert "dot_general" in text
            assert ("Precision.HIGHEST" in text) == (precision == "highest")
