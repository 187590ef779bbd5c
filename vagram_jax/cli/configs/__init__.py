"""The configs of the tasks, found by name."""
