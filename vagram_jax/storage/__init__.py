"""Reads and writes files: results, checkpoints and locks."""
