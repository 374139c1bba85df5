from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import ValidationError
from ray.serve.schema import ServeDeploySchema

from deployments import catalog
from deployments.config import AppArgs, ModelArgs, max_batch_windows
from deployments.contract.errors import InvalidRequestError
from deployments.engine.engine import MAX_WINDOWS

CONFIG = Path(__file__).parents[1] / "serve_config.yaml"


def app_args(**args: Any) -> AppArgs:
    return AppArgs.model_validate(args)


def models(*names: str) -> list[dict[str, Any]]:
    return [{"name": name} for name in names]


@pytest.fixture
def shipped() -> dict[str, Any]:
    """The arguments in the shipped configuration."""
    config = yaml.safe_load(CONFIG.read_text())
    (application,) = config["applications"]
    args: dict[str, Any] = application["args"]
    return args


def test_the_shipped_configuration_is_one_that_serve_takes() -> None:
    config = ServeDeploySchema.model_validate(yaml.safe_load(CONFIG.read_text()))
    (application,) = config.applications
    assert application.name == "whisper"
    assert application.import_path == "deployments.app:build_app"
    assert application.route_prefix == "/"


def test_the_shipped_configuration_sets_no_option_of_a_deployment() -> None:
    # It would replace what the code sets for that deployment, not merge with it.
    (application,) = yaml.safe_load(CONFIG.read_text())["applications"]
    assert "deployments" not in application


def test_the_shipped_values_are_the_defaults(shipped: dict[str, Any]) -> None:
    assert app_args(**shipped) == AppArgs()


def test_the_shipped_configuration_shows_every_option(shipped: dict[str, Any]) -> None:
    assert set(shipped) == set(AppArgs.model_fields)


def test_the_shipped_configuration_explains_every_option_of_a_model() -> None:
    comments = "\n".join(
        line for line in CONFIG.read_text().splitlines() if "#" in line
    )
    for option in ModelArgs.model_fields:
        assert option in comments or option == "name"


def test_every_official_model_is_served(shipped: dict[str, Any]) -> None:
    for args in (app_args(**shipped), AppArgs()):
        assert [model.name for model in args.models] == list(catalog.MODELS)


def test_an_unknown_key_is_refused_at_both_levels() -> None:
    with pytest.raises(ValidationError, match="defualt_model"):
        app_args(defualt_model="base")
    with pytest.raises(ValidationError, match="max_replica\n"):
        app_args(models=[{"name": "base", "max_replica": 2}])


@pytest.mark.parametrize(
    ("alias", "name"), [("large", "large-v3"), ("large-v3-turbo", "turbo")]
)
def test_an_alias_stands_for_its_model_everywhere(alias: str, name: str) -> None:
    args = app_args(default_model=alias, models=models(alias, "tiny"))
    assert args.default_model == name
    assert [model.name for model in args.models] == [name, "tiny"]
    assert args.model(alias) is args.model(name) is args.models[0]
    assert args.models[0].deployment == f"whisper-{name}"
    assert args.valid_names() == [name, "tiny", alias]


def test_an_alias_of_a_model_that_is_not_served_is_no_valid_name() -> None:
    args = app_args(models=models("base"))
    assert args.valid_names() == ["base"]
    with pytest.raises(InvalidRequestError):
        args.model("large")


def test_an_unknown_name_is_refused_with_the_valid_ones() -> None:
    args = app_args(default_model="tiny", models=models("tiny", "large"))
    with pytest.raises(InvalidRequestError) as caught:
        args.model("huge")
    assert str(caught.value) == (
        "Invalid model: 'huge'. Valid models: tiny, large-v3, large"
    )


@pytest.mark.parametrize(
    ("written", "name"),
    [
        ("Base", "base"),
        (" base\n", "base"),
        ("TINY.EN", "tiny.en"),
        ("whisper-base", "base"),
        ("Whisper-Large-V3", "large-v3"),
        ("openai/whisper-base", "base"),
        ("openai/whisper-large-v3-turbo", "turbo"),
        ("openai/whisper-large", "large-v3"),
        ("Large", "large-v3"),
    ],
)
def test_a_model_is_found_by_the_names_that_others_give_it(
    written: str, name: str
) -> None:
    args = app_args()
    assert args.model(written).name == name
    assert app_args(default_model=written).default_model == name


def test_a_name_of_ones_own_wins() -> None:
    def own(name: str) -> dict[str, Any]:
        return {"name": name, "checkpoint": "/mine.pt"}

    args = app_args(
        models=[*models("base"), own("whisper-base"), own("Mine"), own("MINE")]
    )
    assert args.model("whisper-base").name == "whisper-base"
    assert args.model("Whisper-Base").name == "whisper-base"
    assert args.model("openai/whisper-base").name == "base"
    assert args.model("Mine").name == "Mine"
    with pytest.raises(InvalidRequestError):
        args.model("mine")


def test_a_decode_may_take_longer_the_larger_the_model_is() -> None:
    args = app_args(
        models=[*models("base", "small", "large"), {"name": "x", "checkpoint": "/x"}]
    )
    rates = [args.max_decode_rate(model) for model in args.models]
    assert rates == pytest.approx([20, 31.5, 200, 200], abs=0.1)
    told = args.model_copy(update={"max_decode_s_per_audio_s": 3.0})
    assert {told.max_decode_rate(model) for model in told.models} == {3.0}


def test_a_long_or_ill_formed_name_is_quoted_in_part() -> None:
    for name, quoted in (("x" * 100, "x" * 57 + "..."), ("\ud800", "?")):
        with pytest.raises(InvalidRequestError) as caught:
            app_args().model(name)
        assert str(caught.value).startswith(f"Invalid model: '{quoted}'. Valid")


@pytest.mark.parametrize("twice", [("base", "base"), ("turbo", "large-v3-turbo")])
def test_a_model_listed_twice_is_refused(twice: tuple[str, str]) -> None:
    with pytest.raises(ValidationError, match="listed twice"):
        app_args(default_model=twice[0], models=models(*twice))


def test_the_default_model_must_be_served() -> None:
    with pytest.raises(ValidationError, match="'base' is not among the models"):
        app_args(models=models("tiny"))
    with pytest.raises(ValidationError, match="'huge' is not among the models"):
        app_args(default_model="huge")


def test_an_application_without_models_is_refused() -> None:
    with pytest.raises(ValidationError, match="models"):
        app_args(models=[])


def test_a_custom_name_needs_a_checkpoint() -> None:
    with pytest.raises(ValidationError, match="give its checkpoint"):
        ModelArgs(name="mine")
    model = ModelArgs(name="mine", checkpoint="/weights/mine.pt")
    assert model.deployment == "whisper-mine"
    assert model.official is None


def test_a_base_model_gives_the_shape_of_custom_weights() -> None:
    model = ModelArgs(name="mine", checkpoint="/mine.pt", base_model="large")
    assert model.base_model == "large-v3"
    assert model.official is catalog.MODELS["large-v3"]


def test_an_official_model_may_have_custom_weights() -> None:
    model = ModelArgs(name="base", checkpoint="/mine.pt")
    assert model.official is catalog.MODELS["base"]


def test_a_base_model_must_be_official() -> None:
    with pytest.raises(ValidationError, match="'mine' is not an official model"):
        ModelArgs(name="yours", checkpoint="/yours.pt", base_model="mine")


@pytest.mark.parametrize(
    "name", ["", "-x", ".hidden", "a b", "a/b", "../x", "a#b", "tiny\n", "é"]
)
def test_a_name_that_is_no_part_of_a_path_or_url_is_refused(name: str) -> None:
    with pytest.raises(ValidationError, match="name"):
        ModelArgs(name=name, checkpoint="/mine.pt")


def test_min_replicas_may_not_exceed_max_replicas() -> None:
    with pytest.raises(ValidationError, match="larger than max_replicas"):
        ModelArgs(name="base", min_replicas=2)
    assert ModelArgs(name="base", min_replicas=2, max_replicas=2).min_replicas == 2


def test_only_the_default_model_is_preloaded_unless_configured_otherwise() -> None:
    args = app_args(
        default_model="tiny",
        models=[
            *models("tiny", "base"),
            {"name": "small", "min_replicas": 1},
        ],
    )
    assert [args.min_replicas(model) for model in args.models] == [1, 0, 1]


def test_even_the_default_model_may_start_at_its_first_request() -> None:
    args = app_args(models=[{"name": "base", "min_replicas": 0}])
    assert args.min_replicas(args.models[0]) == 0


def test_twice_as_many_as_decode_together_are_admitted_unless_configured_otherwise() -> (
    None
):
    args = app_args(models=[{"name": "base"}, {"name": "tiny", "max_replicas": 3}])
    base, tiny = args.models
    assert args.max_concurrency(base, on_gpu=False) == 2 * max_batch_windows(False)
    assert args.max_concurrency(base, on_gpu=True) == 2 * max_batch_windows(True)
    assert args.max_concurrency(tiny, on_gpu=True) == 6 * max_batch_windows(True)
    told = args.model_copy(update={"max_requests_per_model": 5})
    assert told.max_concurrency(tiny, on_gpu=True) == 5


def test_what_decodes_together_is_what_the_engine_takes_at_most() -> None:
    # The configuration cannot import the engine's table, because that would import torch.
    limits = {"cpu": max_batch_windows(False), "cuda": max_batch_windows(True)}
    assert limits == MAX_WINDOWS


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("device", "mps"),
        ("gpu_memory_gb", 0),
        ("request_timeout_s", 0),
        ("model_start_timeout_s", -1),
        ("placement_timeout_s", 0),
        ("max_requests_per_model", 0),
        ("max_waiting_requests", -1),
        ("max_download_bytes", 0),
        ("connect_timeout_s", 0),
        ("read_timeout_s", 0),
        ("download_timeout_s", 0),
        ("max_audio_s", 0),
        ("max_decode_s_per_audio_s", 0),
    ],
)
def test_a_value_out_of_range_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        app_args(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("min_replicas", -1),
        ("max_replicas", 0),
        ("gpu_share", 0),
        ("gpu_share", 1.1),
        ("idle_s", 0),
    ],
)
def test_a_models_value_out_of_range_is_refused(field: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=field):
        app_args(models=[{"name": "base", field: value}])


@pytest.mark.parametrize(
    ("written", "kept"),
    [
        ("https://page.example", "https://page.example"),
        (" https://Page.Example/ ", "https://page.example"),
        ("https://page.example:443", "https://page.example"),
        ("http://page.example:80/", "http://page.example"),
        ("http://page.example:443", "http://page.example:443"),
        ("http://localhost:3000", "http://localhost:3000"),
        ("http://[::1]:3000", "http://[::1]:3000"),
        ("app://obsidian.md", "app://obsidian.md"),
        ("*", "*"),
    ],
)
def test_an_origin_is_kept_as_browsers_write_it(written: str, kept: str) -> None:
    assert AppArgs(allowed_origins=[written]).allowed_origins == [kept]


@pytest.mark.parametrize(
    "written",
    [
        "",
        "null",
        "page.example",
        "localhost:3000",
        "https://page.example/path",
        "https://*.page.example",
        "https://user@page.example",
        "https://a.example https://b.example",
        "https://page.example:",
        "https://page.example?x",
        "https://bücher.example",
    ],
)
def test_what_is_no_origin_is_refused(written: str) -> None:
    with pytest.raises(
        ValueError, match="allowed_origins: .* must be \\* or like https:"
    ):
        AppArgs(allowed_origins=[written])


@pytest.mark.parametrize(
    ("option", "written", "kept"),
    [
        ("allow_hosts", ["10.0.0.5:9000"], ["10.0.0.5:9000"]),
        ("allow_hosts", [" MinIO.internal:80 "], ["minio.internal:80"]),
        ("allow_hosts", ["[FD00:0::5]:80"], ["[fd00::5]:80"]),
        ("refuse_networks", [" 161.26.0.0/16"], ["161.26.0.0/16"]),
        ("refuse_networks", ["10.0.0.1", "FD00::/8"], ["10.0.0.1/32", "fd00::/8"]),
        (
            "egress_proxy",
            "http://u:p@proxy.example:3128/",
            "http://u:p@proxy.example:3128",
        ),
        ("egress_proxy", "https://[fd00::5]:3128", "https://[fd00::5]:3128"),
        ("egress_proxy", None, None),
    ],
)
def test_hosts_networks_and_proxies_are_kept_as_they_are_compared(
    option: str, written: Any, kept: Any
) -> None:
    assert getattr(app_args(**{option: written}), option) == kept


@pytest.mark.parametrize(
    ("option", "written", "text"),
    [
        ("allow_hosts", ["10.0.0.5"], "'10.0.0.5' must be a host and its port"),
        ("allow_hosts", ["http://minio:80"], "must be a host and its port"),
        ("allow_hosts", ["minio:80/path"], "must be a host and its port"),
        ("allow_hosts", ["minio:0"], "must be a host and its port"),
        ("allow_hosts", ["minio:65536"], "must be a host and its port"),
        ("allow_hosts", ["*.internal:80"], "must be a host and its port"),
        ("allow_hosts", ["fd00::5:80"], "must be a host and its port"),
        ("allow_hosts", ["[fd00::5::1]:80"], "has no valid IPv6 address"),
        ("refuse_networks", ["10.0.0.1/8"], "10.0.0.1/8 has host bits set"),
        ("refuse_networks", ["intranet"], "'intranet' does not appear to be an IPv4"),
        ("egress_proxy", "", "must be like http://proxy.example.com:3128"),
        ("egress_proxy", "socks5://SECRET@proxy", "must be like http://proxy"),
        ("egress_proxy", "http://SECRET@proxy/path", "must be like http://proxy"),
    ],
)
def test_what_is_no_host_network_or_proxy_is_refused(
    option: str, written: Any, text: str
) -> None:
    with pytest.raises(ValidationError) as caught:
        app_args(**{option: written})
    [error] = caught.value.errors()
    assert text in error["msg"] and option in error["msg"]
    assert "SECRET" not in error["msg"]
