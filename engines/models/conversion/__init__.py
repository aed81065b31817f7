"""Making another format of a model from its original weights."""
