"""Getting files from a Hugging Face hub into the standard cache."""
