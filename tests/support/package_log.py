"""The package's log as it was, after a Router or a replica has directed it to Serve's."""

import contextlib
import logging
from collections.abc import Iterator


@contextlib.contextmanager
def kept() -> Iterator[None]:
    """At the end of the block, the log is as it was before."""
    package, serve = logging.getLogger("deployments"), logging.getLogger("ray.serve")
    handlers, filters = [*package.handlers], [*serve.filters]
    level, propagate = package.level, package.propagate
    yield
    package.handlers, serve.filters = handlers, filters
    package.setLevel(level)
    package.propagate = propagate
