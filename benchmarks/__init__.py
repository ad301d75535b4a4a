"""Measurements of speed and memory, and of how scaling constants are found; not part of the installed suite's API."""
