"""The ingress behind every door: validate, download, decode, dispatch, and answer errors."""
