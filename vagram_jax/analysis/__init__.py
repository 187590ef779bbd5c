"""Statistics, plots and reports of finished runs, without JAX."""
