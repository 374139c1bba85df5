import logging
import os
from collections.abc import Iterator

import pytest
from hypothesis import settings

# Before Ray is imported: a call of Serve's own threads after the tests' Ray has ended would start a
# second one.
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")
# Before Ray is imported as well: Ray's processes listen on loopback alone, as in the service.
os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")

# No deadline, because the time of an example depends on the machine. With HYPOTHESIS_PROFILE=slow
# property tests try more examples, and count as slow tests.
PROFILE = os.environ.get("HYPOTHESIS_PROFILE", "fast")
settings.register_profile("fast", deadline=None, max_examples=25)
settings.register_profile("slow", deadline=None, max_examples=400)
settings.load_profile(PROFILE)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        choices=["cpu", "cuda", "emulated"],
        help="where the engine's tests run; emulated: on a second device that the CPU emulates",
    )


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if PROFILE == "slow":
        for item in items:
            if getattr(getattr(item, "obj", None), "is_hypothesis_test", False):
                item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def package_log() -> Iterator[None]:
    """A Router or a replica directs the package's log to Serve's; each test begins without that."""
    package, serve = logging.getLogger("deployments"), logging.getLogger("ray.serve")

    def reset() -> None:
        package.handlers, serve.filters = [], []
        package.setLevel(logging.NOTSET)
        package.propagate = True

    # Also at the beginning, because a Router that several tests share is made before the first.
    reset()
    yield
    reset()
