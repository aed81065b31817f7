"""Measure for people: the tab, and the report that opens anywhere."""
