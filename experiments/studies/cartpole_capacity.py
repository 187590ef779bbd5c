"""As `capacity`, on cartpole swing-up: a longer task, with fewer distractors."""

import functools

from experiments.studies import capacity, loop

cells = functools.partial(capacity.cells, task="cartpole")
run = loop.command(capacity.STUDY, cells)
