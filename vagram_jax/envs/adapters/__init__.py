"""Environments of other libraries: one file per library, with a function `make`.

`to_gymnasium` is for the other direction.

The adapters don't use the libraries' own wrappers, because these lose the last
observation of an episode. A library is imported when one of its environments is made.
"""
