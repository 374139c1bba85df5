"""One long recording through a RunPod worker: progress as it is posted, and the size of the result.

    python -m benchmarks.long_job [RECORDING ... | --manifest PATH] [--hours H] [--model NAME]

The recordings are joined, again and again, to one WAV file; words and tokens are on. The job API is
a stand-in. One line for each post goes to stdout.
"""

import argparse
import json
import tempfile
import time
import wave
from pathlib import Path

import numpy as np

from benchmarks import recordings
from deployments.audio import SAMPLE_RATE
from tests.support.http_server import served_file
from tests.support.runpod_process import running_worker


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.long_job")
    recordings.add_arguments(parser)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--model", default="tiny.en")
    arguments = parser.parse_args()
    spoken = recordings.load(recordings.chosen(parser, arguments))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "long.wav"
        _join(spoken, arguments.hours * 3600, path)
        with (
            served_file(path) as url,
            running_worker(
                Path(folder) / "log", url, WHISPER_MODEL=arguments.model
            ) as worker,
        ):
            started = time.monotonic()
            [job] = worker.api.submit({"audio": url, "word_timestamps": True})
            [result] = worker.api.results(job, timeout_s=4 * 3600)
            posts = worker.api.of(job)
    for post in posts[:-1]:
        print(
            f"{post.at - started:7.1f} s  {post.kind}  {json.dumps(post.body['output'])}"
        )
    answer = result["output"]
    print(
        f"{posts[-1].at - started:7.1f} s  result  {posts[-1].size} bytes,"
        f" {len(answer['segments'])} segments,"
        f" {sum(len(s['tokens']) for s in answer['segments'])} tokens,"
        f" {len(answer['word_timestamps'])} words, {answer['duration']:.0f} s of audio"
    )


def _join(spoken: list[recordings.Recording], seconds: float, path: Path) -> None:
    joined = np.concatenate([recording.pcm for recording in spoken])
    samples = np.resize(joined, int(seconds * SAMPLE_RATE))
    with wave.open(str(path), "wb") as file:
        file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        file.writeframes(samples.tobytes())


if __name__ == "__main__":
    main()
