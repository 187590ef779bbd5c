"""The command `vagram` and the configs of the tasks."""
