"""Which of a file's audio streams is decoded, and how a caller names another one."""

from collections.abc import Sequence

import langcodes
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Discard, Disposition
from langcodes.tag_parser import LanguageTagError

from deployments.catalog import language_code
from deployments.contract import languages
from deployments.contract.errors import InvalidAudioError, InvalidRequestError

# The most tracks that an error or a warning lists.
MOST_LISTED = 20


def choose_track(container: InputContainer, track: int | str | None) -> AudioStream:
    """The stream that the caller names, or else the one that the `ffmpeg` program takes.

    track: number among the audio streams, from 0, or a language; None: the stream that is marked
        as default, then the one with most channels, then the first

    The container gives packets of this stream alone afterwards.

    Raises InvalidAudioError where no stream can be decoded, and InvalidRequestError, with a list
    of what there is, where there is no such track.
    """
    tracks = container.streams.audio
    known = [stream for stream in tracks if stream.codec_context is not None]
    if not known:
        raise InvalidAudioError("the file has no audio stream of a known codec")
    if track is None:
        wanted = known
    elif isinstance(track, int):
        wanted = [stream for stream in tracks[track : track + 1] if stream in known]
    else:
        wanted = _of_language(known, track)
    if not wanted:
        raise InvalidRequestError(
            f"Invalid audio_track: the file has no audio track {track}."
            f" Its audio tracks: {_listed(tracks)}"
        )
    chosen = max(
        wanted, key=lambda s: (Disposition.default in s.disposition, s.channels)
    )
    for stream in container.streams:
        if stream is not chosen:
            stream.discard = Discard.all
    # FFmpeg would start a thread for each core. Many recordings are decoded at the same time.
    chosen.codec_context.thread_count = 1
    return chosen


def _of_language(streams: Sequence[AudioStream], tag: str) -> list[AudioStream]:
    """The streams in this language; where one has this very tag, such as pt-BR, no others."""
    wanted = _standard_tag(tag)
    exact = [s for s in streams if wanted and _tag_of(s) == wanted]
    language = _language(tag)
    return exact or [
        s for s in streams if language and _language(s.language or "") == language
    ]


def _language(name: str) -> str:
    """The language of a tag, code or name: Whisper's own code for it if Whisper knows it."""
    try:
        return languages.find(name).code
    except languages.UnknownLanguageError:
        return _standard_tag(name).partition("-")[0]


def _standard_tag(tag: str) -> str:
    """`pt` for por and Portuguese, `pt-BR` for pt_br, `de` for ger and deu; empty for no tag."""
    try:
        return langcodes.standardize_tag(language_code(tag) or tag, macro=True)
    except LanguageTagError:
        return ""


def _tag_of(stream: AudioStream) -> str:
    # The files' own tags hold anything.
    return _standard_tag(stream.language or "")


def _listed(tracks: Sequence[AudioStream]) -> str:
    told = [_described(number, tracks[number]) for number in range(len(tracks))]
    more = [f"and {len(told) - MOST_LISTED} more"] if len(told) > MOST_LISTED else []
    return ", ".join(told[:MOST_LISTED] + more)


def _described(number: int, stream: AudioStream) -> str:
    if stream.codec_context is None:
        return f"{number} (unknown codec)"
    channels = "1 channel" if stream.channels == 1 else f"{stream.channels} channels"
    known = _tag_of(stream).removeprefix("und")
    return f"{number} ({channels}{known and f', {known}'})"
