"""The application on this machine, in a Ray of its own: `serve` until Ctrl-C, or `transcribe` one recording.

    python -m deployments.local serve [--port PORT]
    python -m deployments.local transcribe AUDIO [--args JSON]

Results go to stdout, everything else to stderr.
"""

import argparse
import contextlib
import io
import json
import logging
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import ray
import requests
from pydantic import ValidationError

from deployments import checkpoints
from deployments.config import APPLICATION, AppArgs
from deployments.contract.errors import CheckpointError, WhisperServeError
from deployments.contract.request import parse_request
from deployments.launch import CONFIG, RAY_LOGS, read_config, running_app
from deployments.local import loopback

_PROGRESS_S = 5.0


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deployments.local")
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("serve", help="serve until Ctrl-C")
    run.add_argument("--port", type=int, help="instead of the configured one")
    once = commands.add_parser("transcribe", help="transcribe one recording")
    once.add_argument("audio", help="URL or path of an audio or video file")
    once.add_argument("--args", default="{}", help="more fields of the request, JSON")
    arguments = parser.parse_args()
    # SIGINT too: a shell starts its background jobs deaf to it.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("deployments").setLevel(logging.INFO)
    result = io.StringIO()
    try:
        # Ray prints; stdout is for the result alone.
        with contextlib.redirect_stdout(sys.stderr):
            if arguments.command == "serve":
                return _serve(arguments.port)
            return _transcribe(arguments.audio, arguments.args, result)
    except CheckpointError as error:
        return _fail(str(error))
    except ValidationError as error:
        return _fail(f"{CONFIG.name}: {error}")
    except requests.RequestException:
        return _fail(f"the application did not answer: see {RAY_LOGS}")
    except RuntimeError:
        return _fail(f"the application did not start: see {RAY_LOGS}")
    except KeyboardInterrupt:
        return 130
    finally:
        print(result.getvalue(), end="", flush=True)


def _serve(port: int | None) -> int:
    config, args = read_config()
    host, port = config.http_options.host, port or config.http_options.port
    if not _is_free(host, port):
        return _fail(f"port {port} on {host} is in use: stop what uses it, or --port")
    _fetch_weights(args.default_model, args)
    with running_app(config, args, port, show_logs=True) as url:
        address = ray.get_runtime_context().gcs_address
        _say(f"serving on {url} (API: {url}/docs); Ctrl-C ends it")
        _say(f'for handles: ray.init(address="{address}")')
        with contextlib.suppress(KeyboardInterrupt):
            threading.Event().wait()
        _say("stopping")
    return 0


def _transcribe(audio: str, fields: str, out: TextIO) -> int:
    config, args = read_config()
    try:
        request = json.loads(fields) | {"audio": audio}
        model = _requested_model(request, args)
    except (ValueError, TypeError):
        return _fail("ARGS must be a JSON object")
    except WhisperServeError as error:
        return _fail(str(error))
    with contextlib.ExitStack() as stack:
        if "://" not in audio:
            if not Path(audio).is_file():
                return _fail(f"no such file: {audio}")
            request["audio"] = stack.enter_context(loopback.served(Path(audio)))
        host, port = config.http_options.host, config.http_options.port
        url = running_url(host, port)
        if url is None:
            for needed in dict.fromkeys([args.default_model, model]):
                _fetch_weights(needed, args)
            with _progress("starting Ray Serve and the model"):
                url = stack.enter_context(
                    running_app(config, args, loopback.free_port(host))
                )
            stack.callback(_say, "stopping")
        else:
            _say(f"using the application that runs on {url}")
        with _progress("transcribing"):
            answer = loopback.session().post(
                f"{url}/transcribe", json=request, timeout=None
            )
    result = answer.json()
    if not answer.ok:
        return _fail(result["error"])
    print(json.dumps(result, indent=2, ensure_ascii=False), file=out)
    return 0


def _requested_model(request: dict[str, Any], args: AppArgs) -> str:
    name = parse_request(request).model or args.default_model
    return args.model(name).name


def _fetch_weights(name: str, args: AppArgs) -> None:
    """Before the application starts, because a download in a replica shows no progress here."""
    model = args.model(name)
    checkpoints.fetch(model.name, model.checkpoint, accept_unofficial=True)


def running_url(host: str, port: int) -> str | None:
    """The base URL of this application if it runs on that port already."""
    url = f"http://{host}:{port}"
    try:
        health: Any = loopback.session().get(f"{url}/health", timeout=2).json()
    except (requests.RequestException, ValueError):
        return None
    named = isinstance(health, dict) and health.get("application") == APPLICATION
    return url if named else None


def _is_free(host: str, port: int) -> bool:
    try:
        with socket.create_server((host, port)):
            return True
    except OSError:
        return False


@contextlib.contextmanager
def _progress(what: str) -> Iterator[None]:
    """Says what goes on, every few seconds."""
    done = threading.Event()
    started = time.monotonic()

    def tell() -> None:
        _say(f"{what} ...")
        while not done.wait(_PROGRESS_S):
            _say(f"{what} ... {time.monotonic() - started:.0f} s")

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
    _say(f"{what}: done in {time.monotonic() - started:.1f} s")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _fail(text: str) -> int:
    _say(f"error: {text}")
    return 1


if __name__ == "__main__":
    sys.exit(main())
