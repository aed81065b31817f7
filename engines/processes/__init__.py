"""Long work in child processes: downloads, conversions, building an environment."""
