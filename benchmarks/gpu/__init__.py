"""Measures on a GPU whether the engine's results are right and how fast it is.

README.md says how.
"""
