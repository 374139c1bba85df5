"""OpenAI's JavaScript SDK against the whole application, whose model answers as told."""

import json
from typing import Any

import pytest

from deployments.contract.errors import OverloadedError, TranscriptionError
from tests.api.openai.service import Service, failing
from tests.api.openai.transcripts import TEXT, TRANSCRIPT, segment_events, segments
from tests.support import javascript
from tests.support.handles import events
from tests.support.markdown import ROOT
from tests.support.routers import AUDIO

RECORDING = AUDIO / "jfk-phone.wav"
PRELUDE = """
import fs from "node:fs";
import OpenAI, { toFile } from "openai";
const [baseURL, recording] = process.argv.slice(2);
const client = new OpenAI({ baseURL, apiKey: "any" });
const transcriptions = client.audio.transcriptions;
async function main() {
"""
# An error is what the test asks about: it is printed as the SDK gives it.
END = """
}
console.log(JSON.stringify(
  await main().catch((error) => ({
    error: error.constructor.name,
    isAPIError: error instanceof OpenAI.APIError,
    status: error.status,
    message: error.message,
    type: error.type,
    code: error.code,
    param: error.param,
    requestID: error.requestID,
  }))
));
"""


def call(service: Service, body: str) -> Any:
    """What the body of a function gives, which has `client` and the path of a `recording`."""
    module = PRELUDE + body + END
    printed = javascript.run(module, f"{service.url}/v1", str(RECORDING), folder=ROOT)
    return json.loads(printed)


def test_a_read_stream_is_sent_in_chunks_with_the_file_first_and_is_transcribed(
    service: Service,
) -> None:
    answer = call(
        service,
        """return transcriptions.create({
            file: fs.createReadStream(recording), model: "whisper-1",
        });""",
    )
    assert answer["text"] == TEXT
    [request] = service.http.requests
    assert request.headers["transfer-encoding"] == "chunked"
    assert "content-length" not in request.headers
    assert b'name="file"' in request.body_start
    assert b'name="model"' not in request.body_start


def test_a_buffer_without_a_name_is_transcribed(service: Service) -> None:
    answer = call(
        service,
        """return transcriptions.create({
            file: await toFile(fs.readFileSync(recording)), model: "gpt-transcribe",
        });""",
    )
    assert answer["text"] == TEXT
    assert "content-length" in service.http.requests[0].headers


def test_words_and_segments_come_with_verbose_json(service: Service) -> None:
    answer = call(
        service,
        """return transcriptions.create({
            file: fs.createReadStream(recording), model: "whisper-1",
            response_format: "verbose_json",
            timestamp_granularities: ["word", "segment"],
        });""",
    )
    assert service.options.word_timestamps
    assert (answer["language"], answer["text"]) == ("english", TEXT)
    texts = [segment.unstripped_text for segment in segments()]
    assert [segment["text"] for segment in answer["segments"]] == texts
    assert answer["words"][0] == {"word": "And", "start": 0, "end": 0.5}
    assert len(answer["words"]) == 7


def test_text_and_subtitles_arrive_as_plain_strings(service: Service) -> None:
    text, srt, vtt = call(
        service,
        """const answers = [];
        for (const response_format of ["text", "srt", "vtt"]) {
            const file = fs.createReadStream(recording);
            const model = "whisper-1";
            answers.push(await transcriptions.create({ file, model, response_format }));
        }
        return answers;""",
    )
    assert text == TEXT + "\n"
    assert srt.startswith("1\n00:00:00,000 --> 00:00:03,000\nAnd so, my fellow")
    assert vtt.startswith("WEBVTT\n\n00:00.000 --> 00:03.000\nAnd so, my fellow")


def test_the_deltas_of_a_stream_join_to_the_text_of_its_end(
    service: Service,
) -> None:
    events = call(
        service,
        """const stream = await transcriptions.create({
            file: fs.createReadStream(recording), model: "whisper-1", stream: true,
        });
        const events = [];
        for await (const event of stream) events.push(event);
        return events;""",
    )
    *deltas, done = events
    assert {event["type"] for event in deltas} == {"transcript.text.delta"}
    assert len(deltas) == len(segments())
    assert (done["type"], done["text"]) == ("transcript.text.done", TEXT)
    assert "".join(event["delta"] for event in deltas) == TEXT


def test_a_failure_after_the_first_delta_is_raised_from_the_stream(
    service: Service,
) -> None:
    failure = failing(TranscriptionError("out of GPU memory"))
    service.answers(segment_events()[0], failure)
    error = call(
        service,
        """const stream = await transcriptions.create({
            file: fs.createReadStream(recording), model: "whisper-1", stream: true,
        });
        let deltas = 0;
        try {
            for await (const event of stream) deltas += 1;
        } catch (error) {
            return {
                deltas, isAPIError: error instanceof OpenAI.APIError, message: error.message,
            };
        }""",
    )
    assert error["deltas"] == 1
    assert error["isAPIError"]
    assert "out of GPU memory" in error["message"]


def test_a_request_at_fault_is_refused_once_with_all_that_the_sdk_shows(
    service: Service,
) -> None:
    error = call(
        service,
        """return transcriptions.create({
            file: await toFile(fs.readFileSync(recording), "a.wav"), model: "whisper-1",
            temperature: 2,
        });""",
    )
    assert error["error"] == "BadRequestError"
    assert (error["status"], error["param"]) == (400, "temperature")
    assert error["type"] == "invalid_request_error"
    assert "must be between 0 and 1" in error["message"]
    assert error["requestID"]
    assert len(service.http.requests) == 1


def test_a_service_that_is_full_for_a_moment_is_asked_again(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The SDK waits for half a second of its own where it is told to wait for none.
    monkeypatch.setattr(OverloadedError, "retry_after_s", 0)
    full = events(failing(OverloadedError("Too many requests")))
    service.answers_in_turn(full, events(*segment_events(), TRANSCRIPT))
    answer = call(
        service,
        """return transcriptions.create({
            file: await toFile(fs.readFileSync(recording), "a.wav"), model: "whisper-1",
        });""",
    )
    assert answer["text"] == TEXT
    assert [request.status for request in service.http.requests] == [503, 200]
    assert service.http.requests[1].headers["x-stainless-retry-count"] == "1"


def test_models_are_listed_and_found_under_names_with_a_slash(
    service: Service,
) -> None:
    found = call(
        service,
        """const listed = [];
        for await (const model of client.models.list()) listed.push(model.id);
        return {
            listed,
            alias: await client.models.retrieve("openai/whisper-base"),
            missing: await client.models.retrieve("acme/none").catch((e) => e.code),
        };""",
    )
    assert {"base", "whisper-1"} <= set(found["listed"])
    assert found["alias"]["object"] == "model"
    assert found["missing"] == "model_not_found"
