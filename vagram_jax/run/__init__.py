"""Training runs: from a config to a finished run on disk."""
