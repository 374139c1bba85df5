"""What people run without this project: import whisper, load a model, transcribe a recording.

    python -m benchmarks.plain_script CHECKPOINT RECORDING

Prints the seconds of each step as JSON.
"""

import json
import sys
import time

started = time.monotonic()

import whisper

imported = time.monotonic()
model = whisper.load_model(sys.argv[1], device="cpu")
loaded = time.monotonic()

# whisper.load_audio needs the ffmpeg program. This takes a few hundredths of a second instead.
from deployments.audio.decode import decode_audio

with open(sys.argv[2], "rb") as file:
    audio = decode_audio(file, 3600).samples.astype("float32") / 32768
result = model.transcribe(
    audio,
    fp16=False,
    beam_size=5,
    best_of=5,
    temperature=(0.0, 0.2, 0.4, 0.6, 0.8, 1.0),
)
done = time.monotonic()
stages = {
    "import": imported - started,
    "weights": loaded - imported,
    "transcribe": done - loaded,
}
print(json.dumps({"stages": stages, "text": result["text"].strip()}), flush=True)
