"""Films of a policy."""
