"""Isolated virtual environments for engines that cannot share the app's own."""
