"""What a request may ask of Whisper.

The description of each field states its rule. The same words tell a caller who broke the rule, so
a description begins with "must be".
"""

import math
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
from pydantic_core import PydanticCustomError

from deployments import catalog
from deployments.contract.errors import InvalidRequestError

_MAX_TEMPERATURES = 100
# The tokenizer raises on text that looks like these.
_SPECIAL_TOKEN = re.compile(r"<\|[a-z0-9.]+\|>")
# Options of the contract that are no arguments of `whisper.transcribe`.
_NOT_WHISPERS_OWN = {"temperature_increment_on_fallback"}


def _whole_float_to_int(value: Any) -> Any:
    # JSON has one kind of number, and some clients write 5 as 5.0.
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _split_numbers(value: Any) -> Any:
    # Whisper's command line writes lists as "1,2,3"; "" is the empty list.
    if not isinstance(value, str):
        return value
    return [float(part) for part in value.split(",")] if value.strip() else []


def _well_formed(value: str) -> str:
    value.encode()  # Raises on a lone surrogate, which neither tokenizers nor JSON take.
    return value


UnicodeText = Annotated[str, AfterValidator(_well_formed)]
WholeNumber = Annotated[int, BeforeValidator(_whole_float_to_int)]
GroupSize = Annotated[WholeNumber, Field(ge=1, le=10)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Tokens = Annotated[
    list[Annotated[WholeNumber, Field(ge=-1)]],
    BeforeValidator(_split_numbers, json_schema_input_type=str | list[int]),
]
Seconds = Annotated[
    list[Annotated[float, Field(ge=0)]],
    BeforeValidator(_split_numbers, json_schema_input_type=str | list[float]),
]


class TranscriptionOptions(BaseModel):
    """The decoding options of Whisper's command line, by their own names."""

    model_config = ConfigDict(
        extra="forbid", strict=True, allow_inf_nan=False, frozen=True
    )

    language: UnicodeText | None = Field(
        None, description="must be a language code or English name, or null to detect"
    )
    temperature: Fraction = Field(0.0, description="must be between 0 and 1")
    beam_size: GroupSize | None = Field(
        5, description="must be an integer between 1 and 10"
    )
    word_timestamps: bool = Field(False, description="must be true or false")
    task: Literal["transcribe", "translate"] = Field(
        "transcribe", description="must be 'transcribe' or 'translate'"
    )
    temperature_increment_on_fallback: Fraction | None = Field(
        0.2, description="must be between 0 and 1, or null for no fallback"
    )
    best_of: GroupSize | None = Field(
        5, description="must be an integer between 1 and 10, or null"
    )
    patience: Annotated[float, Field(gt=0)] | None = Field(
        None, description="must be greater than 0, or null"
    )
    length_penalty: Fraction | None = Field(
        None, description="must be between 0 and 1, or null"
    )
    suppress_tokens: Tokens = Field(
        [-1],
        description="must be token ids, as a list or a comma-separated string;"
        " -1 stands for the usual non-speech symbols",
    )
    initial_prompt: Annotated[UnicodeText, Field(max_length=100_000)] | None = Field(
        None,
        description="must be a string of at most 100,000 characters, without special"
        " tokens (<|en|>), or null",
    )
    carry_initial_prompt: bool = Field(False, description="must be true or false")
    condition_on_previous_text: bool = Field(True, description="must be true or false")
    compression_ratio_threshold: float | None = Field(
        2.4, description="must be a number, or null to switch the rule off"
    )
    logprob_threshold: float | None = Field(
        -1.0, description="must be a number, or null to switch the rule off"
    )
    no_speech_threshold: float | None = Field(
        0.6, description="must be a number, or null to switch the rule off"
    )
    hallucination_silence_threshold: Annotated[float, Field(gt=0)] | None = Field(
        None, description="must be greater than 0, or null; needs word_timestamps"
    )
    clip_timestamps: Seconds = Field(
        [0.0],
        description="must be seconds (start,end,start,...), as a list or a"
        " comma-separated string",
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
        if self.language is not None and not catalog.language_code(self.language):
            yield f"Invalid language: {self.rule('language')}"
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
                if math.isinf(finished_beams):
                    yield "Invalid patience: too large for this beam_size"
                elif round(finished_beams) < 1:
                    yield "Invalid patience: too small for this beam_size"
        if self.hallucination_silence_threshold and not self.word_timestamps:
            yield "Invalid hallucination_silence_threshold: needs word_timestamps"

    @property
    def language_code(self) -> str | None:
        return catalog.language_code(self.language) if self.language else None

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
    n_vocab: size of the vocabulary
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
    if any(token >= limits.n_vocab for token in options.suppress_tokens):
        raise InvalidRequestError(
            f"Invalid suppress_tokens: model '{model}' has token ids up to {limits.n_vocab - 1}"
        )
