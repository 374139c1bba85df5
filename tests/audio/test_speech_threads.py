"""What finding speech leaves behind in the process: PyTorch's threads are as many as before."""

import subprocess
import sys

FINDING = """
import numpy as np
import torch
from deployments.audio.speech import chunks_of

torch.set_num_threads(3)
chunks_of(
    np.zeros(16_000, np.int16),
    threshold=0.5,
    padding_ms=300,
    silence_ms=200,
    cancelled=lambda: False,
)
print(torch.get_num_threads())
"""


def test_finding_speech_leaves_pytorch_its_threads() -> None:
    """In a process of its own, because Silero VAD's package is imported once."""
    done = subprocess.run(
        [sys.executable, "-c", FINDING], check=True, capture_output=True, text=True
    )
    assert done.stdout.strip() == "3"
