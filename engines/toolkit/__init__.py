"""What engine modules share; runs in workers, under any environment's Python."""
