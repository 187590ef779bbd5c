"""Statistics, plots and the report of finished runs. Nothing here imports JAX."""
