"""Subtitles by Whisper's own writers (`whisper/utils.py`).

The file is loaded by its place, because `import whisper.utils` runs the package, which imports
torch, and the Router's process has none.
"""

import functools
import importlib.util
import io
from dataclasses import asdict, dataclass
from types import ModuleType
from typing import Any, Literal, Self

from deployments.api.openai.fields import flag, one
from deployments.contract import values
from deployments.contract.answer import Segment
from deployments.contract.errors import InvalidRequestError

# More characters or lines than any screen has.
_MOST = 1000


@dataclass(frozen=True)
class SubtitleOptions:
    """How words are laid out, by the names of Whisper's command line; all need word times.

    max_line_width: characters of a line, after which a new one begins
    max_line_count: lines of a cue; needs max_line_width
    max_words_per_line: words of a cue; not with max_line_width
    highlight_words: repeat the cue for each word, with that word underlined
    """

    max_line_width: int | None = None
    max_line_count: int | None = None
    max_words_per_line: int | None = None
    highlight_words: bool = False

    @classmethod
    def take(cls, fields: dict[str, Any]) -> Self:
        """Take the options from a request's fields. Raises InvalidRequestError."""
        return cls(
            max_line_width=_count(fields, "max_line_width"),
            max_line_count=_count(fields, "max_line_count"),
            max_words_per_line=_count(fields, "max_words_per_line"),
            highlight_words=flag(fields, "highlight_words"),
        )

    def without_effect(self) -> list[str]:
        """What Whisper's command line warns of."""
        found = []
        if self.max_line_count and not self.max_line_width:
            found.append("max_line_count has no effect without max_line_width")
        if self.max_words_per_line and self.max_line_width:
            found.append("max_words_per_line has no effect with max_line_width")
        return found


def write(
    kind: Literal["srt", "vtt"], segments: list[Segment], options: SubtitleOptions
) -> str:
    """A file of subtitles.

    segments: with their words, where there are options
    """
    writer = {"srt": _whisper().WriteSRT, "vtt": _whisper().WriteVTT}[kind]
    rows = [_row(segment) for segment in segments]
    file = io.StringIO()
    writer("").write_result({"segments": rows}, file, **asdict(options))
    return file.getvalue()


@functools.cache
def _whisper() -> ModuleType:
    package = importlib.util.find_spec("whisper")
    assert package is not None and package.submodule_search_locations is not None
    [folder] = package.submodule_search_locations
    spec = importlib.util.spec_from_file_location("utils", f"{folder}/utils.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _row(segment: Segment) -> dict[str, Any]:
    row: dict[str, Any] = {
        "start": segment.start,
        "end": segment.end,
        "text": segment.text,
    }
    if segment.words is not None:
        row["words"] = [
            # Whisper does so for texts of segments: an arrow would end the cue's text.
            {**word.model_dump(), "word": word.word.replace("-->", "->")}
            for word in segment.words
        ]
    return row


def _count(fields: dict[str, Any], name: str) -> int | None:
    value = values.whole_number(one(fields, name))
    if value is None or values.is_null(value):
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= _MOST:
        raise InvalidRequestError(
            f"Invalid {name}: must be an integer between 1 and {_MOST}"
        )
    return value
