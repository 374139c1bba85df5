"""From a URL or a file to the waveform that Whisper reads."""

# Samples a second of every waveform: Whisper was trained on 16 kHz.
SAMPLE_RATE = 16_000
