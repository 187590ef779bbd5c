"""Cartpole: the setting in which VaGraM does best, on fresh seeds."""

import functools

from experiments.studies import confirmation, loop

labeled = functools.partial(confirmation.labeled, task="cartpole")
run = loop.command(confirmation.DESIGN, labeled)
