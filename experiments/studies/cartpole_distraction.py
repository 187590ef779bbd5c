"""As `distraction`, on cartpole swing-up: a longer task, with fewer distractors."""

import functools

from experiments.studies import distraction, loop

cells = functools.partial(distraction.cells, task="cartpole")
run = loop.command(distraction.STUDY, cells)
