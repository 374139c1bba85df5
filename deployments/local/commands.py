"""The two local commands. A `CommandError` holds the one line that tells a user what to change."""

import contextlib
import errno
import json
import os
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import requests

from deployments import checkpoints
from deployments.audio.download.url import HttpUrl
from deployments.config import AppArgs, ModelArgs
from deployments.contract.errors import AudioUrlError, WhisperServeError
from deployments.drain import drain
from deployments.keys import KEYS, KEYS_FILE, NONE, is_loopback
from deployments.launch import check_keys, running_app
from deployments.local import loopback
from deployments.local.console import progress, say
from deployments.local.doors import DOORS, RequestFailed, is_url
from deployments.ray_node import handle_environment
from deployments.serve_config import CONFIG, base_url

if TYPE_CHECKING:
    from ray.serve.schema import ServeDeploySchema


_LOOPBACK = "127.0.0.1"


class CommandError(Exception):
    """The command cannot do what it was asked to. The text is one line for the user."""


def serve(
    config: "ServeDeploySchema",
    args: AppArgs,
    check_interrupted: Callable[[], None] = lambda: None,
    allow_private_networks: bool = False,
) -> None:
    """Serve on the configured port until SIGINT or SIGTERM, and then finish the requests in work.

    A second signal ends them at once.

    check_interrupted: raises KeyboardInterrupt if a signal came whose exception was swallowed
    allow_private_networks: whether requests may name audio on this machine and its network

    Raises CommandError, CheckpointError, and ConfigError, DeviceError, ModelUnavailableError,
    StartError and RuntimeError as `running_app` does.
    """
    host, port = config.http_options.host, config.http_options.port
    _check_address(host, port)
    check_keys(host)
    if allow_private_networks:
        args = _with_private_networks(args, host)
    _fetch_weights(args.model(args.default_model))
    with contextlib.ExitStack() as stack:
        with progress("starting Ray Serve and the model"):
            url = stack.enter_context(running_app(config, args, port, show_logs=True))
            check_interrupted()
        with contextlib.suppress(KeyboardInterrupt):
            say(f"serving on {url} (API: {url}/docs); Ctrl-C ends it")
            variables = (
                f"{name}={shlex.quote(value)}"
                for name, value in handle_environment().items()
            )
            say(f"for handles: {' '.join(variables)}")
            threading.Event().wait()
        say("stopping: no new requests; a second Ctrl-C or SIGTERM ends those in work")
        _finish_requests(config.applications[0].name)
        say("stopping")


def transcribe(
    config: "ServeDeploySchema",
    args: AppArgs,
    audio: str,
    fields: str,
    out: TextIO,
    check_interrupted: Callable[[], None] = lambda: None,
    door: str = "native",
) -> None:
    """Transcribe one recording and write the answer.

    The application that runs on the configured port does the work. If none runs there, one is
    started for this request on a free port of loopback.

    audio: URL or path
    fields: more fields of the request, a JSON object
    check_interrupted: as of `serve`
    door: a name in `DOORS`

    Raises CommandError, CheckpointError, requests.RequestException if the application does not
    answer, and ConfigError, DeviceError, ModelUnavailableError, StartError and RuntimeError as
    `running_app` does.
    """
    request = DOORS[door](audio, _parsed(fields))
    try:
        # Checked first, so that a wrong request fails before Ray starts.
        model = request.model(args)
    except WhisperServeError as error:
        raise CommandError(str(error)) from None
    if not is_url(audio) and not Path(audio).is_file():
        raise CommandError(f"no such file: {audio}")
    with contextlib.ExitStack() as stack:
        url = _running_url(config)
        if url is not None:
            say(f"using the application that runs on {url}")
        else:
            _check_address(config.http_options.host, 0)
            stack.enter_context(_needing_no_key())
            own = _on_loopback(config)
            if is_url(audio):
                # The user asks for this host, and nobody else asks this application.
                args = args.model_copy(
                    update={"allow_hosts": _with_host_of(audio, args)}
                )
            for name in dict.fromkeys([args.default_model, model.name]):
                _fetch_weights(args.model(name))
            with progress("starting Ray Serve and the model"):
                port = loopback.free_port(own.http_options.host)
                url = stack.enter_context(running_app(own, args, port))
                check_interrupted()
            stack.callback(say, "stopping")
        try:
            with progress("transcribing"):
                answer = request.ask(url)
        except RequestFailed as error:
            raise CommandError(str(error)) from None
    out.write(answer)


def _finish_requests(application: str) -> None:
    from ray import serve
    from ray.exceptions import RayError
    from ray.serve.exceptions import RayServeException

    try:
        drain(serve.get_app_handle(application), lambda state: say(str(state)))
    except KeyboardInterrupt:
        say("ending at once, with the requests in work")
    except (RayError, RayServeException, TimeoutError) as error:
        say(f"the application does not answer ({type(error).__name__})")


def _parsed(fields: str) -> dict[str, Any]:
    try:
        parsed = json.loads(fields)
    except ValueError:
        parsed = None
    if not isinstance(parsed, dict):
        raise CommandError(
            """ARGS must be a JSON object, such as '{"language": "pt"}'"""
        )
    return parsed


def _on_loopback(config: "ServeDeploySchema") -> "ServeDeploySchema":
    """The configuration of an application that other machines cannot reach."""
    own = config.model_copy(deep=True)
    if not is_loopback(own.http_options.host):
        own.http_options.host = "::1" if ":" in own.http_options.host else _LOOPBACK
    return own


def _with_private_networks(args: AppArgs, http_host: str) -> AppArgs:
    if not is_loopback(http_host):
        raise CommandError(
            "--allow-private-networks is for a service that only this machine reaches; for"
            f" others, see allow_hosts and allow_private_networks in {CONFIG.name}"
        )
    say(
        "private networks are allowed: whoever can send a request can fetch from this machine and"
        " its network"
    )
    return args.model_copy(update={"allow_private_networks": True})


def _with_host_of(url: str, args: AppArgs) -> list[str]:
    """The hosts that may be fetched from although they are not public, with that of the URL."""
    try:
        return [*args.allow_hosts, HttpUrl.parse(url).host_and_port]
    except AudioUrlError as error:
        raise CommandError(str(error)) from None


@contextlib.contextmanager
def _needing_no_key() -> Iterator[None]:
    """An application that is started within this block needs no keys."""
    before = {name: os.environ.pop(name, None) for name in (KEYS, KEYS_FILE)}
    os.environ[KEYS] = NONE
    try:
        yield
    finally:
        del os.environ[KEYS]
        os.environ.update(
            {name: value for name, value in before.items() if value is not None}
        )


def _fetch_weights(model: ModelArgs) -> None:
    """Fetch the weights before the application starts.

    A download in a replica would show no progress here.
    """
    checkpoints.fetch(model.name, model.checkpoint, accept_unofficial=True)


def _running_url(config: "ServeDeploySchema") -> str | None:
    """The base URL of this application, if that is what runs on the configured port."""
    url = base_url(config, config.http_options.port)
    try:
        health: Any = loopback.session().get(f"{url}/health", timeout=2).json()
    except (requests.RequestException, ValueError):
        return None
    name = config.applications[0].name
    named = isinstance(health, dict) and health.get("application") == name
    return url if named else None


def _check_address(host: str, port: int) -> None:
    """Raises CommandError if the service could not listen there.

    port: 0: any port
    """
    try:
        loopback.listener(host, port).close()
    except (OSError, ValueError) as error:
        # A ValueError is raised for a text that cannot be a host name.
        if getattr(error, "errno", None) == errno.EADDRINUSE:
            raise CommandError(
                f"port {port} on {host} is in use: stop what uses it, or choose another one"
                " (make serve PORT=8001, or --port 8001)"
            ) from None
        where = f"{host}, port {port}" if port else host
        reason = getattr(error, "strerror", None) or str(error)
        raise CommandError(
            f"cannot listen on {where}: {reason}; see http_options in {CONFIG.name}"
        ) from None
