"""What the machine does while we use it: readings of its devices, where a run really ran, and what disturbed it."""
