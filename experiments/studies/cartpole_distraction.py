"""Cartpole: return against the number of distracting dimensions."""

import functools

from experiments.studies import distraction, loop

labeled = functools.partial(distraction.labeled, task="cartpole")
run = loop.command(distraction.DESIGN, labeled)
