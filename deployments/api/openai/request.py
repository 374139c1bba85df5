"""What a client of OpenAI's API asks: the request of the contract, and the form of its answer."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from deployments.api.openai.errors import UnsupportedValueError
from deployments.api.openai.fields import many, one, plain_fields
from deployments.api.openai.model_names import served_model
from deployments.api.openai.subtitles import SubtitleOptions
from deployments.config import AppArgs
from deployments.contract import inline_audio, values
from deployments.contract.errors import InvalidRequestError
from deployments.contract.request import (
    UploadRequest,
    parse_request,
    parse_upload,
    short,
)

logger = logging.getLogger(__name__)

Task = Literal["transcribe", "translate"]
Format = Literal["json", "text", "srt", "vtt", "verbose_json"]
Granularity = Literal["word", "segment"]
FORMATS: tuple[str, ...] = get_args(Format)
_GRANULARITIES: tuple[str, ...] = get_args(Granularity)

# Where the recording may stand, if it came as no file of a form.
_SOURCES = ("file", "url", "audio_url", "audio", "audio_base64", "input_audio")
# Options of the contract that clients may give by their own names. The rest have one of OpenAI's.
_OPTIONS = tuple(
    name
    for name in UploadRequest.model_fields
    if name not in ("model", "task", "initial_prompt")
)
# OpenAI refuses keywords with these, and they cannot stand in a prompt.
_NO_KEYWORD = re.compile(r"[<>\r\n]")
_UNNAMEABLE = re.compile(r"[^\w.\[\]-]", re.ASCII)
_MAX_NAMED = 10


@dataclass(frozen=True)
class AnswerForm:
    """How the client wants its answer.

    granularities: of the times in verbose_json
    names: the client's own names for fields of the contract; "audio" is the recording's
    ignored: names of fields that have no effect here, fit for a log
    warnings: what was read otherwise than it was written
    """

    task: Task = "transcribe"
    format: Format = "json"
    stream: bool = False
    granularities: frozenset[Granularity] = frozenset({"segment"})
    subtitles: SubtitleOptions = field(default_factory=SubtitleOptions)
    names: dict[str, str] = field(default_factory=lambda: {"audio": "file"})
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class OpenAIRequest:
    """A valid request.

    request: of the contract, for `Router.events` and `Router.answer`; may hold megabytes of base64
    """

    request: dict[str, Any] = field(repr=False)
    form: AnswerForm


def parse(fields: Any, task: Task, args: AppArgs, has_file: bool) -> OpenAIRequest:
    """Read and check the fields of a form or of a JSON object.

    task: of the route
    has_file: whether the recording came as the form's field `file`

    Raises InvalidRequestError, whose text and `field` name fields as the client did.
    """
    reader = _Reader(plain_fields(fields), task)
    reader.read(args, has_file)
    names = reader.names
    try:
        # All that can be refused is refused before an answer begins.
        native = (parse_upload if has_file else parse_request)(reader.request)
        args.check_fits(native.options, args.model(reader.request["model"]))
    except InvalidRequestError as error:
        raise _renamed(error, names) from None
    return OpenAIRequest(reader.request, reader.form())


def log_ignored(form: AnswerForm, request_id: str) -> None:
    """One line of the log that names the fields without effect."""
    if form.ignored:
        logger.info(
            "event=fields_ignored request_id=%s names=%s",
            request_id,
            ",".join(form.ignored),
        )


def _renamed(error: InvalidRequestError, names: dict[str, str]) -> InvalidRequestError:
    known = error.field
    if known is None or known not in names:
        return error
    return type(error)(str(error).replace(known, names[known], 1))


class _Reader:
    """Takes one field after another; what is left at the end is ignored."""

    def __init__(self, fields: dict[str, Any], task: Task) -> None:
        self._fields = fields
        self._route_task = task
        self._ignored: list[str] = []
        self._warnings: list[str] = []
        self.request: dict[str, Any] = {}
        self.names: dict[str, str] = {}

    def read(self, args: AppArgs, has_file: bool) -> None:
        self._read_source(has_file)
        self._read_model(args)
        self._read_task()
        self._format = self._read_format()
        stream = values.boolean(one(self._fields, "stream"))
        if stream not in (None, True, False):
            raise InvalidRequestError("Invalid stream: must be true or false")
        self._stream = bool(stream)
        self._read_language()
        self._read_prompt()
        for name in _OPTIONS:
            if name in self._fields:
                self.request[name] = self._fields.pop(name)
        self._read_temperature()
        self._granularities = self._read_granularities()
        self._subtitles = self._read_subtitles()

    def form(self) -> AnswerForm:
        ignored = _fit_for_a_log([*self._ignored, *self._fields])
        if ignored:
            self._warnings.append(f"Fields without effect here: {', '.join(ignored)}")
        return AnswerForm(
            task=self.request["task"],
            format=self._format,
            stream=self._stream,
            granularities=self._granularities,
            subtitles=self._subtitles,
            names=self.names,
            ignored=ignored,
            warnings=tuple(self._warnings),
        )

    def _read_source(self, has_file: bool) -> None:
        given = {name: one(self._fields, name) for name in _SOURCES}
        found = [name for name, value in given.items() if value is not None]
        if len(found) + has_file > 1:
            raise InvalidRequestError(
                f"Invalid {found[-1]}: the recording is given twice; give one of"
                f" {', '.join(dict.fromkeys(['file', *found]))}"
            )
        if not found and not has_file:
            raise InvalidRequestError(
                "Missing required parameter: 'file' (the recording; or its URL as 'url')"
            )
        source = found[0] if found else "file"
        self.names |= dict.fromkeys(("audio", "audio_base64"), source)
        if not found:
            return
        value = given[source]
        if source == "input_audio":
            value = value.get("data") if isinstance(value, dict) else None
            if not isinstance(value, str):
                raise InvalidRequestError(
                    "Invalid input_audio: must be an object whose 'data' is base64"
                )
        elif source == "audio_url" and isinstance(value, dict):
            value = value.get("url")
        by_address = source in ("url", "audio_url", "audio") or _is_address(value)
        if source != "audio_base64" and by_address:
            self.request["audio"] = value
        else:
            self.request["audio_base64"] = value
        if headers := self._fields.pop("audio_headers", None):
            self.request["audio_headers"] = headers

    def _read_model(self, args: AppArgs) -> None:
        name = one(self._fields, "model")
        if not isinstance(name, str | None):
            raise InvalidRequestError("Invalid model: must be the name of a model")
        model = name or args.default_model
        self.request["model"] = served_model(model, args).name

    def _read_task(self) -> None:
        self.request["task"] = self._route_task
        if self._route_task == "translate":
            # A model that cannot translate is the wrong model for this route.
            self.names["task"] = "model"
            return
        task = one(self._fields, "task")
        if task is not None:
            self.request["task"] = (
                task.strip().lower() if isinstance(task, str) else task
            )

    def _read_format(self) -> Any:
        value = one(self._fields, "response_format")
        if value is None:
            return "json"
        name = value.strip().lower() if isinstance(value, str) else str(value)
        if name not in FORMATS:
            raise UnsupportedValueError(
                f"Invalid response_format: '{short(name)}' is not offered."
                f" Offered are {', '.join(FORMATS)}"
            )
        return name

    def _read_language(self) -> None:
        language = one(self._fields, "language")
        expected = many(self._fields, "languages")
        if language is not None:
            self.request["language"] = language
            self._ignored += ["languages"] if expected else []
        elif len(expected) == 1:
            self.request["language"] = expected[0]
            self.names["language"] = "languages"
        elif expected:
            self._warnings.append(
                "languages: Whisper takes one language; with several it detects the language,"
                " among all that it knows"
            )

    def _read_prompt(self) -> None:
        prompt = one(self._fields, "prompt")
        own = one(self._fields, "initial_prompt")
        if prompt is not None and own is not None:
            raise InvalidRequestError(
                "Invalid initial_prompt: means the same as 'prompt'; give one of them"
            )
        keywords = many(self._fields, "keywords")
        if any(not isinstance(k, str) or _NO_KEYWORD.search(k) for k in keywords):
            raise InvalidRequestError(
                "Invalid keywords: must be strings without <, > and line breaks"
            )
        self.names["initial_prompt"] = "prompt" if own is None else "initial_prompt"
        prompt = prompt if own is None else own
        if keywords:
            self._warnings.append(
                "keywords: they were put in front of the prompt; Whisper has nothing else for them"
            )
            if isinstance(prompt, str | None):
                prompt = f"{', '.join(keywords)}. {prompt or ''}".strip()
        if prompt is not None:
            self.request["initial_prompt"] = prompt

    def _read_temperature(self) -> None:
        temperature = values.number(one(self.request, "temperature"))
        if temperature is None:
            return
        self.request["temperature"] = temperature
        # At 0, OpenAI's API raises the temperature as Whisper's fallback does; above, it does not.
        if temperature != 0:
            self.request.setdefault("temperature_increment_on_fallback", None)

    def _read_granularities(self) -> frozenset[Granularity]:
        given = many(self._fields, "timestamp_granularities")
        if self._format != "verbose_json":
            self._ignored += ["timestamp_granularities"] if given else []
            return frozenset({"segment"})
        wanted = {str(item).lower() for item in given}
        if not wanted.issubset(_GRANULARITIES):
            raise InvalidRequestError(
                "Invalid timestamp_granularities: must be 'word', 'segment' or both"
            )
        found: set[Any] = wanted or {"segment"}
        if values.boolean(self.request.get("word_timestamps")) is True:
            found.add("word")
        if "word" in found:
            self.request["word_timestamps"] = True
        return frozenset(found)

    def _read_subtitles(self) -> SubtitleOptions:
        if self._format not in ("srt", "vtt"):
            return SubtitleOptions()
        options = SubtitleOptions.take(self._fields)
        if options != SubtitleOptions():
            self.request["word_timestamps"] = True
            self._warnings += options.without_effect()
        return options


def _is_address(value: Any) -> bool:
    if not isinstance(value, str):
        return False
    start = value[:10].lstrip().lower()
    return start.startswith(("http://", "https://")) or inline_audio.is_data_uri(value)


def _fit_for_a_log(names: Iterable[str]) -> tuple[str, ...]:
    found = [_UNNAMEABLE.sub("?", name)[:40] for name in names]
    more = len(found) - _MAX_NAMED
    return (*found[:_MAX_NAMED], *([f"and-{more}-more"] if more > 0 else []))
