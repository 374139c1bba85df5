"""What a client of OpenAI's API asks: the request of the contract, and how its answer is wanted."""

import logging
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from deployments.api.openai.answer_options import (
    FORMATS,
    GRANULARITIES,
    AnswerOptions,
    Granularity,
    Task,
)
from deployments.api.openai.errors import UnsupportedValueError, renamed
from deployments.api.openai.fields import flag, many, one, plain_fields
from deployments.api.openai.model_names import served_model
from deployments.api.openai.source import take_source
from deployments.api.openai.subtitles import SubtitleOptions
from deployments.config import AppArgs
from deployments.contract import values
from deployments.contract.errors import InvalidRequestError
from deployments.contract.request import (
    UploadRequest,
    parse_request,
    parse_upload,
    short,
)

logger = logging.getLogger(__name__)

# OpenAI refuses keywords with these, and they cannot stand in a prompt.
_NO_KEYWORD = re.compile(r"[<>\r\n]")
_NOT_FOR_A_LOG = re.compile(r"[^\w.-]", re.ASCII)
_MAX_NAMED = 10


@dataclass(frozen=True)
class OpenAIRequest:
    """A valid request.

    request: of the contract, for `Router.events` and `Router.answer`; may hold megabytes of base64
    """

    request: dict[str, Any] = field(repr=False)
    options: AnswerOptions


def parse(fields: Any, task: Task, args: AppArgs, has_file: bool) -> OpenAIRequest:
    """Read and check the fields of a form or of a JSON object.

    task: of the route
    has_file: whether the recording came as a file beside the fields

    Raises InvalidRequestError, whose text and `field` name fields as the client did.
    """
    reader = _Reader(plain_fields(fields))
    options = reader.read(task, args, has_file)
    request = reader.request
    try:
        # All that can be refused is refused before an answer begins.
        native = parse_upload(request) if has_file else parse_request(request)
        args.check_fits(native.options, args.model(request["model"]))
    except InvalidRequestError as error:
        raise renamed(error, options.names) from None
    return OpenAIRequest(request, options)


def log_ignored(options: AnswerOptions, request_id: str) -> None:
    """One line of the log that names the fields without effect."""
    if options.ignored:
        names = ",".join(options.ignored)
        logger.info("event=fields_ignored request_id=%s names=%s", request_id, names)


class _Reader:
    """Takes one field after another; what is left at the end is ignored.

    request: of the contract, as far as it was read
    """

    def __init__(self, fields: dict[str, Any]) -> None:
        self._fields = fields
        self._names: dict[str, str] = {}
        self._ignored: list[str] = []
        self._warnings: list[str] = []
        self.request: dict[str, Any] = {}

    def read(self, task: Task, args: AppArgs, has_file: bool) -> AnswerOptions:
        source, recording = take_source(self._fields, has_file)
        self._names |= {"audio": source, "audio_base64": source}
        self.request |= recording
        self.request["model"] = self._model(args)
        self.request["task"] = self._task(task)
        format_ = self._format()
        stream = flag(self._fields, "stream")
        self._read_language()
        self._read_prompt()
        for name in UploadRequest.model_fields:
            if name in self._fields:
                self.request[name] = self._fields.pop(name)
        self._read_temperature()
        granularities = self._granularities(format_)
        subtitles = self._subtitles(format_)
        left = [name for name, value in self._fields.items() if value is not None]
        ignored = _fit_for_a_log([*self._ignored, *left])
        if ignored:
            self._warnings.append(f"Fields without effect here: {', '.join(ignored)}")
        return AnswerOptions(
            # The contract refuses a task that is neither.
            task="translate" if self.request["task"] == "translate" else "transcribe",
            format=format_,
            stream=stream,
            granularities=granularities,
            subtitles=subtitles,
            names=self._names,
            ignored=ignored,
            warnings=tuple(self._warnings),
        )

    def _model(self, args: AppArgs) -> str:
        name = one(self._fields, "model")
        if not isinstance(name, str | None):
            raise InvalidRequestError("Invalid model: must be the name of a model")
        return served_model(name or args.default_model, args).name

    def _task(self, task: Task) -> Any:
        if task == "translate":
            # A model that cannot translate is the wrong model for this route.
            self._names["task"] = "model"
            if self._fields.get("task") is not None:
                self._ignored.append("task")
                del self._fields["task"]
            return task
        own = one(self._fields, "task")
        return own.strip().lower() if isinstance(own, str) else own or task

    def _format(self) -> Any:
        value = one(self._fields, "response_format")
        absent = value is None or values.is_null(value)
        name = "json" if absent else str(value).strip().lower()
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
            self._names["language"] = "languages"
        elif expected:
            self._warnings.append(
                "languages: Whisper takes one language, so with several it is detected"
            )

    def _read_prompt(self) -> None:
        given = {name: one(self._fields, name) for name in ("prompt", "initial_prompt")}
        prompts = {name: text for name, text in given.items() if text is not None}
        if len(prompts) > 1:
            raise InvalidRequestError(
                "Invalid initial_prompt: means the same as 'prompt'; give one of them"
            )
        [(name, prompt)] = prompts.items() or [("prompt", None)]
        self._names["initial_prompt"] = name
        keywords = many(self._fields, "keywords")
        if any(not isinstance(k, str) or _NO_KEYWORD.search(k) for k in keywords):
            raise InvalidRequestError(
                "Invalid keywords: must be texts without <, > and line breaks"
            )
        if keywords and isinstance(prompt, str | None):
            # The end of a prompt has most effect, and belongs to what precedes the recording.
            prompt = f"{', '.join(keywords)}. {prompt or ''}".strip()
            self._warnings.append(
                "keywords were put in front of the prompt, because Whisper has no keywords"
            )
        if prompt is not None:
            self.request["initial_prompt"] = prompt

    def _read_temperature(self) -> None:
        temperature = values.number(one(self.request, "temperature"))
        if temperature is None or values.is_null(temperature):
            return
        self.request["temperature"] = temperature
        # At 0, OpenAI's API raises the temperature as Whisper's fallback does; above, it does not.
        if temperature != 0:
            self.request.setdefault("temperature_increment_on_fallback", None)

    def _granularities(self, format_: str) -> frozenset[Granularity]:
        given = many(self._fields, "timestamp_granularities")
        if format_ != "verbose_json":
            self._ignored += ["timestamp_granularities"] if given else []
            return frozenset({"segment"})
        found: set[Any] = {str(item).lower() for item in given} or {"segment"}
        if not found.issubset(GRANULARITIES):
            raise InvalidRequestError(
                "Invalid timestamp_granularities: must be 'word', 'segment' or both"
            )
        if values.boolean(self.request.get("word_timestamps")) is True:
            found.add("word")
        if "word" in found:
            self.request["word_timestamps"] = True
        return frozenset(found)

    def _subtitles(self, format_: str) -> SubtitleOptions:
        if format_ not in ("srt", "vtt"):
            return SubtitleOptions()
        options = SubtitleOptions.take(self._fields)
        if options != SubtitleOptions():
            self.request["word_timestamps"] = True
            self._warnings += options.without_effect()
        return options


def _fit_for_a_log(names: Iterable[str]) -> tuple[str, ...]:
    found = [_NOT_FOR_A_LOG.sub("?", name)[:40] or "?" for name in dict.fromkeys(names)]
    more = len(found) - _MAX_NAMED
    return (*found[:_MAX_NAMED], *([f"{more}-more"] if more > 0 else []))
