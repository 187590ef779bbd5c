"""The commands of `vagram`, and the configs of the tasks."""
