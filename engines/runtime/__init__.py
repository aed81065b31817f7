"""The parent's end of the workers: which are loaded, who uses them, what they say."""
