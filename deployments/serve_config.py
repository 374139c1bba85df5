"""Reads `serve_config.yaml`, and says in one line what is wrong with it.

`serve run` and `serve deploy` read the file by themselves. The commands of this project start one
application in a process of their own, which cannot do all that such a file may ask for: what they
cannot do is refused here, as are keys that Serve would ignore.
"""

import difflib
import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import BaseModel, ValidationError

from deployments.config import AppArgs, ModelArgs

if TYPE_CHECKING:
    from pydantic_core import ErrorDetails
    from ray.serve.schema import ServeDeploySchema

CONFIG = Path(__file__).parent.parent / "serve_config.yaml"

_IMPORT_PATH = "deployments.app:build_app"
_SERVE_RUN = "`serve run` obeys it"
# Keys that Serve knows and that start_app cannot obey, with what to do instead.
_NOT_OBEYED = {
    "grpc_options": "the service speaks no gRPC: leave it out",
    "target_capacity": f"leave it out, or {_SERVE_RUN}",
}
_NOT_OBEYED_OF_AN_APPLICATION = {
    "runtime_env": f"set its variables in the shell and leave it out, or {_SERVE_RUN}",
    "autoscaling_policy": f"set min_replicas and max_replicas under args, or {_SERVE_RUN}",
    "external_scaler_enabled": f"leave it out, or {_SERVE_RUN}",
}


class ConfigError(Exception):
    """The configuration cannot be used. The text is one line that says where and what to change."""


def read_args(path: Path = CONFIG) -> AppArgs:
    """The application's typed arguments alone, read without importing Serve.

    Raises ConfigError.
    """
    with _named(path):
        return _args(_application(_mapping(path)))


def read_config(path: Path = CONFIG) -> tuple["ServeDeploySchema", AppArgs]:
    """The Serve configuration of one application, and the application's typed arguments.

    All that it holds is what `launch.start_app` obeys. Raises ConfigError.
    """
    from ray.serve.schema import ServeDeploySchema

    with _named(path):
        content = _mapping(path)
        application = _application(content)
        _refuse_unknown_keys(content, application)
        try:
            config = ServeDeploySchema.model_validate(content)
        except ValidationError as error:
            raise ConfigError(_readable(error, ())) from None
        args = _args(application)
        _refuse_what_is_not_obeyed(content, application)
        _check_port(config)
        _check_prefix(config)
        _check_deployments(config, args)
        return config, args


def require_http(config: "ServeDeploySchema") -> None:
    """Raises ConfigError if the configuration leaves the application without HTTP."""
    if config.proxy_location == "Disabled":
        raise ConfigError(
            f"{CONFIG.name}: proxy_location: Disabled opens no HTTP: set HeadOnly"
        )
    if config.applications[0].route_prefix is None:
        raise ConfigError(
            f"{CONFIG.name}: route_prefix: null opens no HTTP: set a path such as /"
        )


def base_url(config: "ServeDeploySchema", port: int) -> str:
    """Where the application's routes begin, without a slash at the end."""
    http, [application] = config.http_options, config.applications
    server = server_url(http.host, port, "https" if http.ssl_certfile else "http")
    return f"{server}{application.route_prefix or ''}".rstrip("/")


def server_url(host: str, port: int, scheme: str = "http") -> str:
    """The URL at which a caller on this machine reaches what listens on this host and port."""
    # A server can listen on all addresses, but a client has to name one.
    host = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}.get(host, host)
    return f"{scheme}://[{host}]:{port}" if ":" in host else f"{scheme}://{host}:{port}"


def deployment_options(config: "ServeDeploySchema") -> dict[str, dict[str, Any]]:
    """By deployment, the options that replace those of the code."""
    [application] = config.applications
    options = {}
    for deployment in application.deployments:
        fields = deployment.model_dump(exclude_unset=True)
        options[fields.pop("name")] = fields
    return options


@contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's name before the text of a ConfigError."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{path.name}: {error}") from None


def _mapping(path: Path) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except OSError as error:
        raise ConfigError(f"cannot be read: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError("is not UTF-8") from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise ConfigError(f"line {line} is no YAML: {error.problem}") from None
    except yaml.YAMLError:
        raise ConfigError("is no YAML") from None
    if not isinstance(content, dict):
        raise ConfigError("must hold keys and values, among them applications")
    return content


def _application(content: Mapping[str, Any]) -> dict[str, Any]:
    applications = content.get("applications")
    if not isinstance(applications, list) or not applications:
        raise ConfigError("applications must be a list that holds one application")
    if len(applications) > 1:
        raise ConfigError(
            f"applications lists {len(applications)}, and this command starts one:"
            " leave one, or start them with `serve run`"
        )
    [application] = applications
    if not isinstance(application, dict):
        raise ConfigError("applications[0] must hold keys and values")
    import_path = application.get("import_path")
    if import_path not in (_IMPORT_PATH, _IMPORT_PATH.replace(":", ".")):
        raise ConfigError(f"import_path must be {_IMPORT_PATH}")
    return application


def _args(application: Mapping[str, Any]) -> AppArgs:
    try:
        return AppArgs.model_validate(application.get("args") or {})
    except ValidationError as error:
        raise ConfigError(_readable(error, ("args",))) from None


def _refuse_unknown_keys(
    content: Mapping[str, Any], application: Mapping[str, Any]
) -> None:
    """Refuse what Serve ignores. A section of a wrong type is left to Serve's own check."""
    from ray.serve import schema

    sections: list[tuple[str, Any, type[BaseModel]]] = [
        ("", content, schema.ServeDeploySchema),
        ("http_options.", content.get("http_options"), schema.HTTPOptionsSchema),
        ("logging_config.", content.get("logging_config"), schema.LoggingConfig),
        ("applications[0].", application, schema.ServeApplicationSchema),
    ]
    deployments = application.get("deployments")
    for number, deployment in enumerate(
        deployments if isinstance(deployments, list) else []
    ):
        place = f"deployments[{number}]."
        sections.append((place, deployment, schema.DeploymentSchema))
        if isinstance(deployment, dict):
            actor_options = deployment.get("ray_actor_options")
            place += "ray_actor_options."
            sections.append((place, actor_options, schema.RayActorOptionsSchema))
    for place, section, kind in sections:
        for key in section if isinstance(section, dict) else ():
            if key not in kind.model_fields:
                raise ConfigError(_unknown(f"{place}{key}", key, kind.model_fields))


def _refuse_what_is_not_obeyed(
    content: Mapping[str, Any], application: Mapping[str, Any]
) -> None:
    for section, refused in (
        (content, _NOT_OBEYED),
        (application, _NOT_OBEYED_OF_AN_APPLICATION),
    ):
        for key, instead in refused.items():
            if section.get(key):
                raise ConfigError(f"{key} is not obeyed by this command: {instead}")


def _check_port(config: "ServeDeploySchema") -> None:
    port = config.http_options.port
    if not 0 < port < 65536:
        raise ConfigError(f"http_options.port must be 1 to 65535, not {port}")


def _check_prefix(config: "ServeDeploySchema") -> None:
    [application] = config.applications
    prefix = application.route_prefix
    if prefix is not None and (
        not prefix.startswith("/")
        or (prefix != "/" and prefix.endswith("/"))
        or set("{}") & set(prefix)
    ):
        raise ConfigError(
            f"route_prefix must be / or a path such as /whisper, not '{prefix}'"
        )


def _check_deployments(config: "ServeDeploySchema", args: AppArgs) -> None:
    from ray.serve import Deployment

    models = [model.deployment for model in args.models]
    obeyed = set(inspect.signature(Deployment.options).parameters)
    for name, options in deployment_options(config).items():
        if name not in ["Router", *models]:
            raise ConfigError(
                _unknown(f"deployments: {name}", name, ["Router", *models])
            )
        if "num_replicas" in options and name in models:
            raise ConfigError(
                f"num_replicas of {name} would have no effect: set min_replicas and"
                " max_replicas of the model under args"
            )
        _check_user_config(name, options.get("user_config") or {}, args)
        for option in options:
            if option not in obeyed:
                raise ConfigError(
                    f"{option} of {name} is not obeyed by this command:"
                    f" leave it out, or {_SERVE_RUN}"
                )


def _check_user_config(
    deployment: str, user_config: Mapping[str, Any], args: AppArgs
) -> None:
    if not user_config:
        return
    if deployment != "Router":
        raise ConfigError(
            f"user_config of {deployment} is not read: set the model's options under args"
        )
    try:
        args.with_limits(user_config)
    except ValueError as error:
        raise ConfigError(f"user_config of Router: {error}") from None


def _readable(error: ValidationError, place: tuple[str, ...]) -> str:
    """Every broken rule on one line."""
    return "; ".join(_rules(error.errors(include_url=False), place))


def _rules(details: "list[ErrorDetails]", place: tuple[str, ...]) -> Iterator[str]:
    for detail in details:
        keys = [*place, *detail["loc"]]
        path = "".join(
            f"[{key}]" if isinstance(key, int) else f".{key}" for key in keys
        )
        path = path.removeprefix(".")
        if detail["type"] == "extra_forbidden":
            known = [*AppArgs.model_fields, *ModelArgs.model_fields]
            yield _unknown(path, str(keys[-1]), known)
        elif detail["type"] == "value_error":
            yield detail["msg"].removeprefix("Value error, ")
        else:
            rule = detail["msg"].removeprefix("Input ")
            yield f"{path} {rule}, not {_short(detail['input'])}"


def _unknown(path: str, key: object, known: Any) -> str:
    close = difflib.get_close_matches(str(key), list(known), n=1)
    return f"unknown key {path}" + (f"; do you mean {close[0]}?" if close else "")


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
