"""The History and Trends tabs."""
