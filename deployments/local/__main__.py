"""The application on this machine, in a Ray of its own: for good, or for one recording.

    python -m deployments.local serve [--port PORT] [--allow-private-networks]
    python -m deployments.local transcribe AUDIO [--args JSON] [--door DOOR] [--port PORT]

Results go to stdout, everything else to stderr. The exit status is 0, 1 after an error that one
line on stderr explains, or 130 after Ctrl-C.
"""

import argparse
import contextlib
import io
import logging
import sys

import requests

from deployments.contract.errors import (
    CheckpointError,
    DeviceError,
    ModelUnavailableError,
)
from deployments.local import commands
from deployments.local.console import say
from deployments.local.doors import DOORS
from deployments.local.interrupts import Interrupts
from deployments.local.processes import adopt_orphans, end_children
from deployments.ray_node import StartError, log_folder, prepare_environment
from deployments.serve_config import CONFIG, ConfigError, read_config, require_http


def main() -> int:
    arguments = _parser().parse_args()
    interrupts = Interrupts()
    interrupts.install()
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("deployments").setLevel(logging.INFO)
    result = io.StringIO()
    try:
        prepare_environment()
        # Ray prints to stdout, which is for the result alone.
        with contextlib.redirect_stdout(sys.stderr):
            config, args = read_config()
            require_http(config)
            if arguments.port is not None:
                config.http_options.port = arguments.port
            if arguments.command == "serve":
                commands.serve(
                    config, args, interrupts.check, arguments.allow_private_networks
                )
            else:
                commands.transcribe(
                    config,
                    args,
                    arguments.audio,
                    arguments.args,
                    result,
                    interrupts.check,
                    arguments.door,
                )
        return 0
    except (
        commands.CommandError,
        ConfigError,
        CheckpointError,
        ModelUnavailableError,
        StartError,
    ) as error:
        return _fail(str(error))
    except DeviceError as error:
        return _fail(f"{error}; `device: cpu` in {CONFIG.name} computes without a GPU")
    except requests.RequestException:
        return _fail(f"the application did not answer: see {log_folder()}")
    except RuntimeError:
        return _fail(f"the application did not start: see {log_folder()}")
    except KeyboardInterrupt:
        return 130
    finally:
        print(result.getvalue(), end="", flush=True)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m deployments.local")
    commands = parser.add_subparsers(dest="command", required=True)
    serve = commands.add_parser("serve", help="serve until Ctrl-C")
    serve.add_argument(
        "--allow-private-networks",
        action="store_true",
        help="let requests name audio on this machine and its network; on loopback alone",
    )
    transcribe = commands.add_parser("transcribe", help="transcribe one recording")
    transcribe.add_argument("audio", help="URL or path of an audio or video file")
    transcribe.add_argument(
        "--args", default="{}", help="more fields of the request, JSON"
    )
    transcribe.add_argument(
        "--door", choices=DOORS, default="native", help="the HTTP API to use"
    )
    for command in (serve, transcribe):
        command.add_argument("--port", type=_port, help="instead of the configured one")
    return parser


def _port(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) < 65536:
        raise argparse.ArgumentTypeError(f"must be 1 to 65535, not '{text}'")
    return int(text)


def _fail(text: str) -> int:
    say(f"error: {text}")
    return 1


if __name__ == "__main__":
    adopt_orphans()
    try:
        status = main()
    finally:
        end_children()
    sys.exit(status)
