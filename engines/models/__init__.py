"""Models: what a name means, what is here, what is missing, and how to get it."""
