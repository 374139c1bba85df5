import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--device",
        default="cpu",
        choices=["cpu", "cuda", "emulated"],
        help="where the engine's tests run; emulated: on a second device that the CPU emulates",
    )
