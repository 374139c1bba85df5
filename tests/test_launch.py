import pytest

from deployments import launch
from deployments.serve_config import ConfigError, read_config


def test_http_that_the_configuration_does_not_open_is_refused_before_anything_starts() -> (
    None
):
    config, args = read_config()
    config.applications[0].route_prefix = None
    with pytest.raises(ConfigError, match=r"^serve_config\.yaml: route_prefix: null"):
        launch.start_app(config, args, http_port=8000)
