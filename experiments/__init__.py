"""The commands of the studies: each parses, calls the package and writes.

`flags` alone knows absl and ml_collections; `configs` has one file per task, which
states only what differs from the defaults in the package.
"""
