"""Lets the requests in work end before the service stops.

    python -m deployments.drain [APPLICATION]

From then on GET /ready is 503 and new requests are refused with 503; those in work are finished.
The command returns when none is left, at the latest a few seconds after `drain_timeout_s`, when
those still in work have been answered with an error. Run it before `serve shutdown`, and before a
head pod ends: both end Serve's HTTP proxy at once, with every request that it holds.

A drain has no way back but a new Router: deploy the application again, or end it.

The exit status is 0; 1 if requests were left in work or the application cannot be asked; and 130
after Ctrl-C, which ends the wait and not the drain.
"""

import argparse
import logging
import math
import sys
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from deployments.router.in_flight import DrainState
from deployments.serve_config import CONFIG, ConfigError, read_config

if TYPE_CHECKING:
    from ray.serve.handle import DeploymentHandle

_POLL_S = 0.2
# Between two reports of the same number, and of different ones.
_REPORT_S, _CHANGE_S = 5.0, 1.0
# A Router answers within this time, unless its machine is overloaded.
_ANSWER_S = 30.0
# For the requests that a Router ends when their time has passed.
_ENDED_S = 5.0
# For Serve's proxy to send the last bytes of what the Router has just answered.
_LAST_BYTES_S = 1.0


def drain(
    router: "DeploymentHandle[Any]", report: Callable[[DrainState], None]
) -> DrainState:
    """Return when no request is in work, or when those that are do not even end with an error.

    router: the application's handle
    report: is told of the requests in work, when their number changes and every few seconds

    Every Router of the application is drained. One that dies takes its requests with it. Raises
    RayError or RayServeException if the application cannot be asked, and TimeoutError if it does
    not answer. Blocks: not for an event loop.
    """
    reported, reported_at = 0, -math.inf
    while (state := _state(router)).in_work and state.left_s >= -_ENDED_S:
        waits_s = _REPORT_S if state.in_work == reported else _CHANGE_S
        if time.monotonic() - reported_at >= waits_s:
            reported, reported_at = state.in_work, time.monotonic()
            report(state)
        time.sleep(_POLL_S)
    if state.in_work:
        report(state)
    time.sleep(_LAST_BYTES_S)
    return state


def _state(router: "DeploymentHandle[Any]") -> DrainState:
    """Of all Routers together."""
    from ray.exceptions import RayActorError

    answers = router.broadcast("drain").results(
        timeout_s=_ANSWER_S, return_exceptions=True
    )
    states = []
    for answer in answers:
        if isinstance(answer, DrainState):
            states.append(answer)
        elif not isinstance(answer, RayActorError):
            raise answer
    return DrainState(
        sum(state.in_work for state in states),
        max((state.left_s for state in states), default=0.0),
    )


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.drain")
    parser.add_argument(
        "application", nargs="?", help=f"by default the one of {CONFIG.name}"
    )
    chosen = parser.parse_args().application
    import ray
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        name = chosen or read_config()[0].applications[0].name
        logging.getLogger("ray.serve").setLevel(logging.WARNING)
        ray.init(address="auto", log_to_driver=False, logging_level=logging.ERROR)
        state = drain(serve.get_app_handle(name), lambda state: _say(str(state)))
    except ConfigError as error:
        return _fail(str(error))
    except ConnectionError:
        return _fail("no Ray runs here: set RAY_ADDRESS to one")
    except RayServeException:
        return _fail(f"this Ray has no application '{name}', or it is not running")
    except RayError as error:
        return _fail(f"application '{name}' does not answer ({type(error).__name__})")
    except TimeoutError:
        return _fail(f"application '{name}' did not answer within {_ANSWER_S:.0f} s")
    except KeyboardInterrupt:
        return 130
    if state.in_work:
        return 1
    _say("drained")
    return 0


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fail(text: str) -> int:
    _say(f"error: {text}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
