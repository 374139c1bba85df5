import os

import pytest
from hypothesis import settings

# No deadline, because the time of an example depends on the machine. HYPOTHESIS_PROFILE=slow tries
# more examples.
settings.register_profile("fast", deadline=None, max_examples=50)
settings.register_profile("slow", deadline=None, max_examples=1000)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "fast"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        choices=["cpu", "cuda", "emulated"],
        help="where the engine's tests run; emulated: on a second device that the CPU emulates",
    )
