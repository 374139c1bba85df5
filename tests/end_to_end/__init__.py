"""The whole application on one Ray cluster: real HTTP, real weights, real speech."""
