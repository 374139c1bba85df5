import json

import pytest

from deployments.contract.answer import Answer, SegmentWord, Word
from deployments.contract.errors import InvalidRequestError
from deployments.runpod.result_size import fit_openai_to_limit, fit_to_limit
from tests.runpod.examples import answer_with


def sent(answer: Answer) -> int:
    """Bytes, as they are posted."""
    return len(json.dumps({"output": answer.model_dump()}, ensure_ascii=False).encode())


def test_a_result_within_the_limit_is_sent_as_it_is() -> None:
    answer = answer_with(10)
    assert fit_to_limit(answer, sent(answer)) == answer.model_dump()


def test_a_result_over_the_limit_loses_its_tokens_and_says_so() -> None:
    answer = answer_with(10).model_copy(update={"warnings": ["an earlier one"]})
    output = fit_to_limit(answer, sent(answer) - 1)
    assert all("tokens" not in segment for segment in output["segments"])
    assert output["segments"][3]["text"] == "ß" * 50
    assert output["warnings"][0] == "an earlier one"
    assert output["warnings"][1].startswith("The segments' tokens are left out")
    assert output["transcription"] == "short"
    assert answer.segments[0].tokens
    assert len(answer.warnings) == 1


def test_the_segments_words_go_before_their_tokens() -> None:
    answer = answer_with(10)
    word = {"start": 0.0, "end": 1.0, "probability": 1.0}
    segments = [
        segment.model_copy(update={"words": [SegmentWord(word=" x", **word)]})
        for segment in answer.segments
    ]
    flat = [Word(word="x", **word)] * 10
    answer = answer.model_copy(update={"segments": segments, "word_timestamps": flat})
    output = fit_to_limit(answer, sent(answer) - 1)
    assert not any("words" in segment for segment in output["segments"])
    assert all("tokens" in segment for segment in output["segments"])
    assert len(output["word_timestamps"]) == 10
    [warning] = output["warnings"]
    assert warning.startswith("The segments' words are left out")
    output = fit_to_limit(answer, sent(answer) - 3000)
    assert not any("tokens" in segment for segment in output["segments"])
    assert [warning.split()[2] for warning in output["warnings"]] == ["words", "tokens"]


def test_a_result_that_is_too_large_without_tokens_is_an_error_that_says_what_to_do() -> (
    None
):
    words = [Word(word="x", start=0.0, end=1.0, probability=1.0)]
    answer = answer_with(10_000, tokens=1).model_copy(update={"word_timestamps": words})
    with pytest.raises(InvalidRequestError) as caught:
        fit_to_limit(answer, 1_000_000)
    assert str(caught.value).endswith(
        "more than the 1 MB that can be sent: transcribe the"
        " recording without word_timestamps, or in parts (clip_timestamps)"
    )


def test_what_is_no_json_is_not_sent() -> None:
    answer = answer_with(1).model_copy(update={"duration": float("nan")})
    with pytest.raises(ValueError, match="not JSON compliant"):
        fit_to_limit(answer, 1000)


def test_in_openais_form_the_tokens_become_an_empty_list() -> None:
    segments = [{"id": 0, "text": "x", "tokens": [50000] * 100}]
    output = {"text": "x", "segments": segments}
    assert fit_openai_to_limit(output, 100_000) == output
    fitted = fit_openai_to_limit(output, 300)
    assert fitted["segments"] == [{"id": 0, "text": "x", "tokens": []}]
    [warning] = fitted["warnings"]
    assert warning.startswith("The segments' tokens are left out")


@pytest.mark.parametrize(
    ("output", "advice"),
    [
        ("x" * 1000, "the recording in parts"),
        ({"text": "x" * 1000}, "the recording in parts"),
        (
            {"text": "x" * 1000, "words": []},
            "the recording without words, or in parts (clip_timestamps)",
        ),
        (
            {"text": "x" * 1000, "chunks": []},
            "the recording in parts (clip_timestamps, not together with chunking_strategy)",
        ),
    ],
    ids=["text", "json", "words", "chunks"],
)
def test_in_openais_form_too_the_error_says_what_to_do(
    output: object, advice: str
) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        fit_openai_to_limit(output, 500)
    assert advice in str(caught.value)
