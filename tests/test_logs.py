import logging
from collections.abc import Iterator

import pytest

from deployments.contract.errors import InvalidRequestError, ModelUnavailableError
from deployments.logs import Stages, error_location, log_through_serve


class Lines(logging.Handler):
    """What a log file would hold."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def serve_log() -> Iterator[Lines]:
    """Serve's log as a replica finds it; both loggers are left as they were."""
    loggers = [logging.getLogger(name) for name in ("ray.serve", "deployments")]
    before = [
        (logger.handlers, logger.filters, logger.level, logger.propagate)
        for logger in loggers
    ]
    lines = Lines()
    for logger in loggers:
        logger.handlers, logger.filters = [], []
    loggers[0].addHandler(lines)
    loggers[0].setLevel(logging.INFO)
    loggers[0].propagate = False
    yield lines
    for logger, (handlers, filters, level, propagate) in zip(
        loggers, before, strict=True
    ):
        logger.handlers, logger.filters = handlers, filters
        logger.setLevel(level)
        logger.propagate = propagate


def log_failure(error: Exception) -> None:
    """As Serve logs an exception that leaves a replica."""
    try:
        raise error
    except Exception:
        logging.getLogger("ray.serve").exception("Request failed %s", "after 5 ms")


def test_the_packages_lines_go_to_serves_log_at_its_level(serve_log: Lines) -> None:
    log_through_serve()
    logger = logging.getLogger("deployments.router.router")
    logger.info("event=%s", "started")
    logger.debug("event=unheard")
    assert serve_log.lines == ["event=started"]


def test_an_expected_failure_is_logged_in_one_line(serve_log: Lines) -> None:
    log_through_serve()
    log_failure(ModelUnavailableError("base", "100% of the memory is taken"))
    (line,) = serve_log.lines
    assert line == (
        "Request failed after 5 ms model_unavailable:"
        " Model 'base' is not available: 100% of the memory is taken"
    )


def test_a_wrong_request_is_no_error_of_the_service(serve_log: Lines) -> None:
    log_through_serve()
    log_failure(InvalidRequestError("Invalid temperature: must be between 0 and 1"))
    assert serve_log.lines == []


def test_an_unforeseen_failure_keeps_its_traceback(serve_log: Lines) -> None:
    log_through_serve()
    log_failure(RuntimeError("unforeseen"))
    (text,) = serve_log.lines
    assert text.startswith("Request failed after 5 ms\nTraceback")
    assert text.endswith("RuntimeError: unforeseen")


def test_lines_without_an_error_pass_unchanged(serve_log: Lines) -> None:
    log_through_serve()
    logging.getLogger("ray.serve").info("all %s", "well")
    assert serve_log.lines == ["all well"]


def test_asking_twice_changes_nothing(serve_log: Lines) -> None:
    for _ in range(2):
        log_through_serve()
    logging.getLogger("deployments.router.router").info("once")
    log_failure(ModelUnavailableError("base", "gone"))
    assert len(serve_log.lines) == 2
    assert serve_log.lines[0] == "once"
    assert serve_log.lines[1].count("model_unavailable") == 1
    assert len(logging.getLogger("ray.serve").filters) == 1


def test_a_handler_that_serve_adds_later_gets_the_lines_too(serve_log: Lines) -> None:
    log_through_serve()
    later = Lines()
    logging.getLogger("ray.serve").addHandler(later)
    logging.getLogger("deployments.router.router").info("event=started")
    assert later.lines == ["event=started"]


def test_the_place_of_an_error_is_its_innermost_frame() -> None:
    def fail() -> None:
        raise ValueError("quotes the request")

    with pytest.raises(ValueError) as caught:
        fail()
    line = fail.__code__.co_firstlineno + 1
    assert error_location(caught.value) == f"test_logs.py:{line}"
    assert error_location(ValueError()) == "unknown"


def test_stages_tell_how_long_each_part_took_and_all_together() -> None:
    clock = iter([100.0, 102.1, 102.31])
    stages = Stages(lambda: next(clock))
    stages.done("imports")
    stages.done("weights")
    assert str(stages) == "imports=2.10 weights=0.21"
    assert stages.seconds == pytest.approx(2.31)
