"""Cartpole: return against the width of the model, with distracting dimensions."""

import functools

from experiments.studies import capacity, loop

labeled = functools.partial(capacity.labeled, task="cartpole")
run = loop.command(capacity.DESIGN, labeled)
