"""Gymnasium's MuJoCo tasks, on C MuJoCo or MJX."""
