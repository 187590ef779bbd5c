"""Checks devices and trains runs of `session_cases`, for `test_devices`.

    python tests/device_runs.py PROCESS COUNT PORT [ROOT NAME SEEDS STEPS RESUME]...

It is one of COUNT processes. The last line of its output is JSON.
"""

import json
import os
import sys
import traceback
from pathlib import Path

import jax
import numpy as np

from vagram_jax.run import devices, session, vectorized
from vagram_jax.storage import files


def main(process, count, port, *runs):
    """Joins the other processes, answers what only several can, and trains."""
    if count > 1:
        devices.initialize(f"127.0.0.1:{port}", count, process)
        checks = {}
    else:
        import device_checks

        checks = device_checks.run()
    import session_cases as cases  # it uses JAX, which must know the other processes

    if process:

        def refuse(*_, **__):
            raise AssertionError("only the first process writes tables")

        files.append_rows = files.keep_rows = refuse
    vectorized.make_programs = cases.make_programs_once
    layout = devices.Layout()
    own = devices.own_lanes(layout, cases.LANES)
    lanes = devices.put(np.array(own, np.int32) * 10, layout, cases.LANES)
    keys = jax.jit(jax.vmap(jax.random.key), out_shardings=layout.sharding)(lanes)
    answers = {
        "checks": checks,
        "is_first": devices.is_first(),
        "describe": devices.describe(),
        "least": devices.agree(5 - process),
        "own": list(own),
        "fetched": devices.fetch_own(lanes).tolist(),
        "keys": devices.fetch_own(keys)[:, 1].tolist(),
        "all": devices.fetch_all({"x": lanes})["x"].tolist(),
        "lines": [],
    }
    options = {"layout": layout, "seed_chunk": cases.LANES}
    for root, name, seeds, steps, resume in zip(*[iter(runs)] * 5, strict=True):
        run_config = cases.RUN.replace(num_seeds=int(seeds), total_steps=int(steps))
        session.train_runs(
            [cases.spec(name, run_config=run_config)],
            Path(root),
            cases.STUDY,
            options=session.SessionOptions(resume=resume == "resume", **options),
            report=answers["lines"].append,
        )
    print(json.dumps(answers), flush=True)


if __name__ == "__main__":
    _, process, count, port, *rest = sys.argv
    try:
        main(int(process), int(count), port, *rest)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # an ordinary exit would wait for the other processes
