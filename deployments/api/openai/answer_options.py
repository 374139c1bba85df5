"""How a client of OpenAI's API wants its answer."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from deployments.api.openai.subtitles import SubtitleOptions

Task = Literal["transcribe", "translate"]
Format = Literal["json", "text", "srt", "vtt", "verbose_json"]
Granularity = Literal["word", "segment"]
FORMATS: tuple[str, ...] = get_args(Format)
GRANULARITIES: tuple[str, ...] = get_args(Granularity)


@dataclass(frozen=True)
class AnswerOptions:
    """What the client wants of the answer, and what it calls the fields of the contract.

    granularities: of the times in verbose_json, and at the end of a stream
    names: by field of the contract the client's own name, where that is another one; "audio" is
        the recording's, however it came
    ignored: names of fields that have no effect here, fit for a log
    warnings: what was read otherwise than the client may think
    """

    task: Task
    format: Format = "json"
    stream: bool = False
    granularities: frozenset[Granularity] = frozenset({"segment"})
    subtitles: SubtitleOptions = field(default_factory=SubtitleOptions)
    names: dict[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
