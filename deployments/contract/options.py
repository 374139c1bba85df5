"""What a request may ask of Whisper.

The description of each field states its rule. The same words tell a caller who broke the rule, so
a description begins with "must be".
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Self, get_args

import numpy as np
from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    model_validator,
)
from pydantic_core import PydanticCustomError, PydanticUseDefault

from deployments import catalog
from deployments.contract import chunking, languages, values
from deployments.contract.errors import InvalidRequestError

_MAX_TEMPERATURES = 100
# Ten times what the widest beam search looks for. A search for more would go on to the last of a
# window's 224 steps nearly always, and find nothing that ranks higher.
_MAX_FINISHED_BEAMS = 100
# As many as the largest vocabulary has, and a hundred more.
_MAX_TOKENS = 52_000
# From 0.00 to 30.00 s in steps of 0.02 s.
_TIMESTAMPS = 1501
# A window begins with a timestamp up to 1.00 s (`max_initial_timestamp`).
_FIRST_TIMESTAMPS = 51
# 5,000 clips; each of them takes a window, however short it is.
_MAX_CLIP_TIMESTAMPS = 10_000
# The tokenizer raises on text that looks like these.
_SPECIAL_TOKEN = re.compile(r"<\|[a-z0-9.]+\|>")
# Options of the contract that are no arguments of `whisper.transcribe`.
_NOT_WHISPERS_OWN = {"temperature_increment_on_fallback", "chunking_strategy"}


def _absent_in_words(value: Any) -> Any:
    # A field of a form that was left empty, or null as text where Whisper knows no None.
    if values.is_blank(value) or values.is_null(value):
        raise PydanticUseDefault
    return value


def _null_in_words(value: Any) -> Any:
    if values.is_blank(value):
        raise PydanticUseDefault
    return None if values.is_null(value) else value


def _word_for_null_is_absent(value: Any) -> Any:
    # Blank text is the empty list.
    if values.is_null(value):
        raise PydanticUseDefault
    return value


def _lower(value: Any) -> Any:
    return value.strip().lower() if isinstance(value, str) else value


def blank_to_null(value: Any) -> Any:
    return None if values.is_blank(value) else value


def _detect_to_null(value: Any) -> Any:
    asks = isinstance(value, str) and languages.asks_to_detect(value)
    return None if asks else value


def _well_formed(value: str) -> str:
    if not value.isascii():
        # Raises on a lone surrogate, which neither tokenizers nor JSON take.
        value.encode()
    return value


UnicodeText = Annotated[str, AfterValidator(_well_formed)]
# BeforeValidators run from the last to the first.
Absent = BeforeValidator(_absent_in_words)
Null = BeforeValidator(_null_in_words)
Number = Annotated[float, BeforeValidator(values.number)]
WholeNumber = Annotated[int, BeforeValidator(values.whole_number)]
Boolean = Annotated[bool, BeforeValidator(values.boolean), Absent]
GroupSize = Annotated[WholeNumber, Field(ge=1, le=10)]
Fraction = Annotated[Number, Field(ge=0, le=1)]
Tokens = Annotated[
    list[Annotated[WholeNumber, Field(ge=-1)]],
    Field(max_length=_MAX_TOKENS),
    BeforeValidator(values.items, json_schema_input_type=str | list[int]),
    BeforeValidator(_word_for_null_is_absent, json_schema_input_type=str | list[int]),
]
Seconds = Annotated[
    list[Annotated[Number, Field(ge=0)]],
    Field(max_length=_MAX_CLIP_TIMESTAMPS),
    BeforeValidator(values.items, json_schema_input_type=str | list[float]),
    BeforeValidator(_word_for_null_is_absent, json_schema_input_type=str | list[float]),
]


class TranscriptionOptions(BaseModel):
    """The decoding options of Whisper's command line, by their own names."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True
    )

    language: Annotated[UnicodeText | None, BeforeValidator(_detect_to_null)] = Field(
        None,
        description="must be a language code, tag or name, or null to detect",
    )
    temperature: Annotated[Fraction, Absent] = Field(
        0.0, description="must be between 0 and 1"
    )
    beam_size: Annotated[GroupSize | None, Null] = Field(
        5, description="must be an integer between 1 and 10"
    )
    word_timestamps: Boolean = Field(False, description="must be true or false")
    task: Annotated[
        Literal["transcribe", "translate"], BeforeValidator(_lower), Absent
    ] = Field("transcribe", description="must be 'transcribe' or 'translate'")
    temperature_increment_on_fallback: Annotated[Fraction | None, Null] = Field(
        0.2, description="must be between 0 and 1, or null for no fallback"
    )
    best_of: Annotated[GroupSize | None, Null] = Field(
        5, description="must be an integer between 1 and 10, or null"
    )
    patience: Annotated[Annotated[Number, Field(gt=0)] | None, Null] = Field(
        None, description="must be greater than 0, or null"
    )
    length_penalty: Annotated[Fraction | None, Null] = Field(
        None, description="must be between 0 and 1, or null"
    )
    suppress_tokens: Tokens = Field(
        [-1],
        description="must be token ids, as a list or a comma-separated string;"
        " -1 stands for the usual non-speech symbols",
    )
    initial_prompt: Annotated[
        Annotated[UnicodeText, Field(max_length=100_000)] | None,
        BeforeValidator(blank_to_null),
    ] = Field(
        None,
        description="must be a string of at most 100,000 characters, without special"
        " tokens (<|en|>), or null",
    )
    carry_initial_prompt: Boolean = Field(False, description="must be true or false")
    condition_on_previous_text: Boolean = Field(
        True, description="must be true or false"
    )
    compression_ratio_threshold: Annotated[Number | None, Null] = Field(
        2.4, description="must be a number, or null to switch the rule off"
    )
    logprob_threshold: Annotated[Number | None, Null] = Field(
        -1.0, description="must be a number, or null to switch the rule off"
    )
    no_speech_threshold: Annotated[Number | None, Null] = Field(
        0.6, description="must be a number, or null to switch the rule off"
    )
    # Whisper skips silence in steps of 0.01 s: with less it would begin the same window again.
    hallucination_silence_threshold: Annotated[
        Annotated[Number, Field(ge=0.01)] | None, Null
    ] = Field(None, description="must be at least 0.01, or null; needs word_timestamps")
    clip_timestamps: Seconds = Field(
        [0.0],
        description="must be seconds (start,end,start,...), as a list or a"
        " comma-separated string of at most 10,000",
    )
    chunking_strategy: chunking.ChunkingStrategy = Field(
        None, description=chunking.RULE
    )
    prepend_punctuations: UnicodeText = Field(
        "\"'“¿([{-", description="must be a string of punctuation marks"
    )
    append_punctuations: UnicodeText = Field(
        "\"'.。,，!！?？:：”)]}、", description="must be a string of punctuation marks"
    )

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, payload: Any) -> Any:
        """Null is a value only where the field's type takes None."""
        if not isinstance(payload, dict):
            return payload
        return {
            key: value
            for key, value in payload.items()
            if value is not None or cls._takes_null(key)
        }

    @model_validator(mode="after")
    def _rules_between_fields(self) -> Self:
        text = next(self._broken_rules(), None)
        if text is not None:
            raise PydanticCustomError("contract", "{text}", {"text": text})
        return self

    @classmethod
    def _takes_null(cls, key: str) -> bool:
        field = cls.model_fields.get(key)
        return field is None or type(None) in get_args(field.annotation)

    @classmethod
    def rule(cls, field: str) -> str:
        """The rule of a field, as a caller who broke it is told: "must be ..."."""
        return cls.model_fields[field].description or ""

    def _broken_rules(self) -> Iterator[str]:
        """The text of each rule beyond a single field's type that the values break."""
        if self.language is not None:
            try:
                languages.find(self.language)
            except languages.UnknownLanguageError as error:
                yield "; ".join(
                    filter(
                        None, [f"Invalid language: {self.rule('language')}", str(error)]
                    )
                )
        if _SPECIAL_TOKEN.search(self.initial_prompt or ""):
            yield f"Invalid initial_prompt: {self.rule('initial_prompt')}"
        increment = self.temperature_increment_on_fallback
        if increment and increment * _MAX_TEMPERATURES < 1:
            yield "Invalid temperature_increment_on_fallback: must be 0 or at least 0.01"
        if self.patience is not None:
            if self.beam_size is None:
                yield "Invalid patience: needs a beam_size"
            else:
                # Beam search ends at this many finished beams; Whisper asserts at least 1.
                finished_beams = self.beam_size * self.patience
                if finished_beams > _MAX_FINISHED_BEAMS:
                    yield (
                        "Invalid patience: too large for this beam_size;"
                        f" their product may be {_MAX_FINISHED_BEAMS} at most"
                    )
                elif round(finished_beams) < 1:
                    yield "Invalid patience: too small for this beam_size"
        if self.hallucination_silence_threshold and not self.word_timestamps:
            yield "Invalid hallucination_silence_threshold: needs word_timestamps"
        if self.chunking_strategy and self.clip_timestamps != [0.0]:
            yield "Invalid chunking_strategy: finds its own clips; leave clip_timestamps out"

    @property
    def language_code(self) -> str | None:
        return languages.find(self.language).code if self.language else None

    @property
    def language_note(self) -> str | None:
        """What the caller should know of how the language was read."""
        return languages.find(self.language).note if self.language else None

    def whisper_options(self) -> dict[str, Any]:
        """The keyword arguments of `whisper.transcribe` that these options stand for.

        The ladder of temperatures is that of Whisper's command line (`whisper.transcribe.cli`).
        """
        step = self.temperature_increment_on_fallback
        temperature = (
            tuple(np.arange(self.temperature, 1.0 + 1e-6, step).tolist())
            if step
            else self.temperature
        )
        # The fields of this class alone: a subclass adds what is not for Whisper.
        names = set(TranscriptionOptions.model_fields) - _NOT_WHISPERS_OWN
        return self.model_dump(include=names) | {
            "temperature": temperature,
            "language": self.language_code,
            # As text, because Whisper extends a list that it is given.
            "suppress_tokens": ",".join(map(str, self.suppress_tokens)),
        }


@dataclass(frozen=True)
class ModelLimits:
    """What bounds the options that a model can follow.

    num_languages: how many of `catalog.LANGUAGES`, from its beginning, the vocabulary has
    n_vocab: size of the vocabulary, whose last 1,501 tokens are the timestamps
    translates: whether the model was trained to translate
    """

    multilingual: bool
    num_languages: int
    n_vocab: int
    translates: bool = True

    @classmethod
    def of(cls, official: catalog.OfficialModel) -> Self:
        return cls(
            multilingual=official.multilingual,
            num_languages=official.num_languages,
            n_vocab=official.n_vocab,
            translates=official.translates,
        )

    @property
    def end_of_text(self) -> int:
        """The token that ends a window's text. The text tokens of its vocabulary come before it."""
        return 50257 if self.multilingual else 50256

    @property
    def first_timestamp(self) -> int:
        """The token of 0.00 s."""
        return self.n_vocab - _TIMESTAMPS


def check_fits_model(
    options: TranscriptionOptions,
    model: str,
    limits: ModelLimits,
    translating_models: Sequence[str] = (),
) -> None:
    """Refuse what the model cannot do.

    The router checks models whose limits are known beforehand, the replica checks the user's own.

    model: name, for the error text
    translating_models: names to recommend to a caller who wants a translation

    Raises InvalidRequestError.
    """
    code = options.language_code
    if not limits.multilingual:
        if code not in (None, "en"):
            raise InvalidRequestError(
                f"Invalid language: model '{model}' knows English only"
            )
        if options.task == "translate":
            raise InvalidRequestError(
                f"Invalid task: model '{model}' knows English only and cannot translate"
            )
    elif (
        code is not None and code not in list(catalog.LANGUAGES)[: limits.num_languages]
    ):
        raise InvalidRequestError(
            f"Invalid language: model '{model}' does not know '{code}'"
        )
    if options.task == "translate" and not limits.translates:
        names = ", ".join(translating_models) or "none of those served here"
        raise InvalidRequestError(
            f"Invalid task: model '{model}' was not trained to translate."
            f" Models that translate: {names}"
        )
    suppressed = set(options.suppress_tokens)
    if limits.end_of_text in suppressed:
        raise InvalidRequestError(
            f"Invalid suppress_tokens: {limits.end_of_text} is the end of text of model '{model}',"
            " without which no window ends"
        )
    first = limits.first_timestamp
    if suppressed.issuperset(range(first, first + _FIRST_TIMESTAMPS)):
        raise InvalidRequestError(
            f"Invalid suppress_tokens: model '{model}' begins each window with one of the"
            f" timestamps {first} to {first + _FIRST_TIMESTAMPS - 1}; leave one of them"
        )
    if any(token >= limits.n_vocab for token in suppressed):
        raise InvalidRequestError(
            f"Invalid suppress_tokens: model '{model}' has token ids up to {limits.n_vocab - 1}"
        )
