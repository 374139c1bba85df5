"""The whole application on real parts: one Ray cluster for the session, real HTTP, real weights,
real speech.
"""
