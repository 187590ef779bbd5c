"""Reading and writing files: results, checkpoints and locks."""
