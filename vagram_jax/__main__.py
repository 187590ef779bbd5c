"""Runs the command `vagram` as `python -m vagram_jax`."""

from vagram_jax.cli import main

if __name__ == "__main__":
    main.main()
