"""Trains runs of `session_cases` as one of several processes, for `test_devices`.

python tests/device_runs.py PROCESS COUNT PORT [FOLDER TOTAL_STEPS RESUME]...
"""

import json
import os
import sys
import traceback
from pathlib import Path

import jax
import numpy as np

from vagram_jax.run import devices, session
from vagram_jax.storage import files


def main(process, count, port, *runs):
    """Joins the others, asks what only several processes can answer, and trains."""
    if count > 1:
        devices.initialize(f"127.0.0.1:{port}", count, process)
    import session_cases as cases  # it asks JAX, which must know of the others first

    if process:

        def refuse(*_, **__):
            raise AssertionError("the first process alone writes tables")

        files.append_rows = files.keep_rows = refuse
    layout = devices.Layout()
    own = devices.own_lanes(layout, 8)
    placed = devices.put(np.array(own, np.int32) * 10, layout, 8)
    keys = jax.jit(jax.vmap(jax.random.key), out_shardings=layout.sharding)(placed)
    found = {
        "is_first": devices.is_first(),
        "describe": devices.describe(),
        "least": devices.agree(5 - process),
        "own": list(own),
        "fetched": devices.fetch_own(placed).tolist(),
        "keys": devices.fetch_own(keys)[:, 1].tolist(),
        "all": devices.fetch_all({"x": placed})["x"].tolist(),
    }
    for folder, total_steps, resume in zip(*[iter(runs)] * 3, strict=True):
        job = cases.job(Path(folder))
        run = cases.RUN.replace(num_seeds=8, total_steps=int(total_steps))
        kept = session.Keeping(layout=layout, resume=bool(int(resume)))
        with session.owning([job.folder]):
            session.train_to_files(run, [job], cases.ENV, keeping=kept)
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    _, process, count, port, *rest = sys.argv
    try:
        main(int(process), int(count), port, *rest)
    except BaseException:
        traceback.print_exc()
        os._exit(1)  # an orderly end would wait for the others, who wait for this one
