"""As `confirmation`, on the cartpole swing-up."""

from __future__ import annotations

import functools

from experiments.studies import confirmation, loop

cells = functools.partial(confirmation.cells, task="cartpole")
run = loop.command(confirmation.STUDY, cells)
