"""The typed arguments of the application: everything under `args` in `serve_config.yaml`.

Unknown keys are refused, so that a misspelt option fails at start and not silently.
"""

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
    model_validator,
)

from deployments import catalog, hosts
from deployments.contract.errors import InvalidRequestError
from deployments.contract.options import (
    ModelLimits,
    TranscriptionOptions,
    check_fits_model,
)
from deployments.contract.request import short

_SMALLEST_DECODE_RATE, _LARGEST_DECODE_RATE = 20.0, 200.0
_MAX_BATCH_WINDOWS = {"cpu": 8, "cuda": 32}
# What the deployments are made from. A running Router can change all other options.
_NEEDS_RESTART = (
    "default_model",
    "models",
    "device",
    "gpu_memory_gb",
    "max_decode_s_per_audio_s",
    "allowed_origins",
    "drain_timeout_s",
)


class _Args(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ModelArgs(_Args):
    """One served model: one deployment, each replica with its share of a GPU."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    checkpoint: str | None = Field(
        None, description="path of the weights; required for a name of your own"
    )
    base_model: str | None = Field(
        None, description="official model that weights of your own started from"
    )
    min_replicas: int | None = Field(
        None, ge=0, description="unset: 1 for the default model, 0 for the others"
    )
    max_replicas: int = Field(1, ge=1)
    gpu_share: float | None = Field(
        None,
        gt=0,
        le=1,
        description="of one GPU; unset: the model's need over the card's memory",
    )
    idle_s: float = Field(
        300, gt=0, description="seconds without a request until scale-down"
    )

    @field_validator("name", "base_model")
    @classmethod
    def _canonical(cls, name: str | None) -> str | None:
        return catalog.ALIASES.get(name, name) if name else name

    @model_validator(mode="after")
    def _has_weights(self) -> "ModelArgs":
        if self.base_model is not None and self.base_model not in catalog.MODELS:
            raise ValueError(f"base_model '{self.base_model}' is not an official model")
        if self.name not in catalog.MODELS and not self.checkpoint:
            raise ValueError(
                f"model '{self.name}' is not an official one: give its checkpoint"
            )
        if self.min_replicas is not None and self.min_replicas > self.max_replicas:
            raise ValueError(
                f"model '{self.name}': min_replicas is larger than max_replicas"
            )
        return self

    @property
    def official(self) -> catalog.OfficialModel | None:
        """What is known beforehand of the model's shape; None for an unknown one."""
        return catalog.MODELS.get(self.base_model or self.name)

    @property
    def deployment(self) -> str:
        return f"whisper-{self.name}"


def _official_models() -> list[ModelArgs]:
    return [ModelArgs(name=name) for name in catalog.MODELS]


class AppArgs(_Args):
    """The whole application."""

    default_model: str = "base"
    models: list[ModelArgs] = Field(default_factory=_official_models, min_length=1)

    device: Literal["auto", "cuda", "cpu"] = "auto"
    gpu_memory_gb: float | None = Field(
        None, gt=0, description="of one card; unset: asked of the card"
    )

    request_timeout_s: float = Field(
        3600,
        gt=0,
        description="from dispatch to result; also for the waits before, and for a body",
    )
    max_decode_s_per_audio_s: float | None = Field(
        None,
        gt=0,
        description="seconds of the model's time for a second of audio; unset: by its size,"
        " 20 for base and 200 for large",
    )
    model_start_timeout_s: float = Field(600, gt=0)
    placement_timeout_s: float = Field(
        10, gt=0, description="for a free share of a GPU"
    )
    max_requests_per_model: int | None = Field(
        None,
        ge=1,
        description="in work at once, for each model;"
        " unset: twice as many as its replicas decode together",
    )
    max_waiting_requests: int = Field(
        1000, ge=0, description="beyond those, for each model; more are refused"
    )

    max_download_bytes: int = Field(
        1 << 30, ge=1, description="of one file, downloaded or uploaded"
    )
    max_spool_bytes: int = Field(
        4 << 30,
        ge=1,
        description="of all files on disk at once: downloads, uploads and base64",
    )
    max_downloads: int = Field(256, ge=1, description="in progress at once")
    min_bytes_per_s: float = Field(
        1024,
        ge=0,
        description="of a download or an upload, averaged over half a minute; 0: no minimum",
    )
    connect_timeout_s: float = Field(10, gt=0)
    read_timeout_s: float = Field(30, gt=0)
    download_timeout_s: float = Field(600, gt=0)
    max_audio_s: float = Field(4 * 3600, gt=0, description="of decoded audio")
    max_audio_in_work_s: float | None = Field(
        None,
        gt=0,
        description="of all recordings that a model's replicas hold at once;"
        " unset: four times max_audio_s for each replica",
    )
    max_requests_per_key: int | None = Field(
        None,
        ge=1,
        description="of one API key for one model, waiting or in work;"
        " unset: as many waiting as are still free",
    )
    drain_timeout_s: float = Field(
        600, gt=0, description="for the requests in work when the service stops"
    )

    allow_hosts: list[str] = Field(
        default_factory=list,
        description="exact host:port pairs that may be fetched from although they are not public",
    )
    refuse_networks: list[str] = Field(
        default_factory=list,
        description="further networks that are never fetched from, such as 161.26.0.0/16",
    )
    allow_private_networks: bool = Field(
        False,
        description="true: a caller can make the service fetch from this machine and its network",
    )
    egress_proxy: str | None = Field(
        None,
        repr=False,
        description="URL of an HTTP proxy for all downloads, which then decides what is fetched",
    )

    openai_models: dict[str, str] = Field(
        default_factory=dict,
        description="the served model for a name of OpenAI's, such as whisper-1;"
        " for names that are not listed, the default model",
    )
    allowed_origins: list[str] = Field(
        default_factory=list,
        description="of web pages that may use the service from a browser (CORS), such as"
        " https://example.com",
    )

    @field_validator("allowed_origins")
    @classmethod
    def _as_browsers_write_them(cls, origins: list[str]) -> list[str]:
        return [hosts.origin(text) for text in origins]

    @field_validator("allow_hosts")
    @classmethod
    def _hosts_with_ports(cls, pairs: list[str]) -> list[str]:
        return [hosts.host_and_port(text) for text in pairs]

    @field_validator("refuse_networks")
    @classmethod
    def _networks(cls, networks: list[str]) -> list[str]:
        return [hosts.network(text) for text in networks]

    @field_validator("egress_proxy")
    @classmethod
    def _proxy(cls, url: str | None) -> str | None:
        return None if url is None else hosts.proxy(url)

    @model_validator(mode="after")
    def _names_agree(self) -> "AppArgs":
        names = [model.name for model in self.models]
        if len(set(names)) < len(names):
            raise ValueError("a model is listed twice (aliases count as the same)")
        default = self._find(self.default_model)
        if default is None:
            raise ValueError(
                f"default_model '{self.default_model}' is not among the models"
            )
        self.default_model = default.name
        for name in self.openai_models.values():
            if self._find(name) is None:
                raise ValueError(f"openai_models: '{name}' is not among the models")
        return self

    def with_limits(self, limits: Mapping[str, Any]) -> "AppArgs":
        """These arguments with other limits.

        limits: by option; every option of the application but those that need a restart

        Raises ValueError with the name of an option that is no limit, or whose value is wrong.
        """
        for name in limits:
            if name in _NEEDS_RESTART:
                raise ValueError(f"'{name}' can only be changed under args")
        try:
            return AppArgs.model_validate(self.model_dump() | dict(limits))
        except ValidationError as error:
            wrong = (
                f"{'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()
            )
            raise ValueError("; ".join(wrong)) from None

    def model(self, name: str) -> ModelArgs:
        """The served model of this name or alias, in any case and with OpenAI's prefixes.

        Raises InvalidRequestError with the names that are served.
        """
        model = self._find(name)
        if model is None:
            raise InvalidRequestError(
                f"Invalid model: '{short(name)}'. Valid models: {', '.join(self.valid_names())}"
            )
        return model

    def _find(self, name: str) -> ModelArgs | None:
        """The served model that is named exactly so, or else the only one whose name is alike."""
        canonical = catalog.ALIASES.get(name, name)
        found = [model for model in self.models if model.name == canonical]
        for plain in (name.strip().lower(), catalog.plain_name(name)):
            canonical = catalog.ALIASES.get(plain, plain)
            found = found or [m for m in self.models if m.name.lower() == canonical]
        return found[0] if len(found) == 1 else None

    def aliases(self, model: ModelArgs) -> list[str]:
        """Other names that a request may use for a served model."""
        return [alias for alias, name in catalog.ALIASES.items() if name == model.name]

    def check_fits(self, options: TranscriptionOptions, model: ModelArgs) -> None:
        """Refuse what a served model cannot do, as far as that is known before it is loaded.

        Raises InvalidRequestError.
        """
        if model.official is None:
            return
        translating = [
            other.name
            for other in self.models
            if other.official is not None and other.official.translates
        ]
        check_fits_model(
            options, model.name, ModelLimits.of(model.official), translating
        )

    def valid_names(self) -> list[str]:
        """Every name and alias that a request may use."""
        served = [model.name for model in self.models]
        aliases = [alias for alias, name in catalog.ALIASES.items() if name in served]
        return served + aliases

    def max_concurrency(self, model: ModelArgs, on_gpu: bool) -> int:
        """How many requests for the model may be in work at the same time.

        By default as many are admitted as all replicas of the model accept.
        """
        if self.max_requests_per_model is not None:
            return self.max_requests_per_model
        return requests_per_replica(max_batch_windows(on_gpu)) * model.max_replicas

    def audio_in_work_s(self, model: ModelArgs) -> float:
        """Seconds of audio that the requests in work for the model may have together."""
        if self.max_audio_in_work_s is not None:
            return self.max_audio_in_work_s
        return 4 * self.max_audio_s * model.max_replicas

    def max_decode_rate(self, model: ModelArgs) -> float:
        """How many seconds of a model's time a request may take for each second of its audio.

        By default about twenty times what two cores take for noise that fails at every temperature
        (benchmarks/results/decode_limit.md), so that no honest request meets the limit.
        """
        if self.max_decode_s_per_audio_s is not None:
            return self.max_decode_s_per_audio_s
        if model.official is None:
            return _LARGEST_DECODE_RATE
        size = model.official.parameters_m / catalog.MODELS["large-v3"].parameters_m
        return max(_LARGEST_DECODE_RATE * size, _SMALLEST_DECODE_RATE)

    def min_replicas(self, model: ModelArgs) -> int:
        """The default model is preloaded; the others start at their first request."""
        if model.min_replicas is not None:
            return model.min_replicas
        return 1 if model.name == self.default_model else 0


def max_batch_windows(on_gpu: bool) -> int:
    """How many windows, each of another request, a replica decodes together at most.

    Where memory is short, the engine decodes fewer.
    """
    return _MAX_BATCH_WINDOWS["cuda" if on_gpu else "cpu"]


def requests_per_replica(slots: int) -> int:
    """How many requests a replica accepts: the next ones are ready when a slot is free.

    Each holds its samples, its spectrogram and a thread there. A request that a replica has
    accepted stays with it, so the others wait in the router for the first replica with room.
    """
    return 2 * slots
