import pytest
import torch
from torch import Tensor
from whisper.model import Whisper

from deployments.engine.model import onednn
from deployments.engine.model.encoder import Encoder
from tests.support.engine import devices
from tests.support.engine.lively_whisper import lively_whisper, noise_mel


def whispers_features(model: Whisper, mel: Tensor) -> Tensor:
    reference = devices.official(model)
    features: Tensor = reference.encoder(mel.to(reference.device))
    return features.to(model.device)


@pytest.mark.parametrize("packed", [True, False], ids=["packed", "plain"])
@pytest.mark.parametrize(
    "dimensions",
    [
        {},
        {"n_mels": 128, "n_audio_layer": 3, "n_audio_head": 4, "n_audio_state": 64},
        {"n_audio_ctx": 1500},
    ],
)
def test_features_are_whispers(
    monkeypatch: pytest.MonkeyPatch, dimensions: dict[str, int], packed: bool
) -> None:
    if not packed:
        monkeypatch.setattr(onednn, "AVAILABLE", False)
    # The decoder plays no part, but its state must have the size of the encoder's.
    state = {"n_text_state": dimensions.get("n_audio_state", 32), "n_text_layer": 1}
    model = lively_whisper(**dimensions, **state)
    mel = torch.stack([noise_mel(model, seed) for seed in range(3)])
    expected = whispers_features(model, mel)
    ours = Encoder(model.encoder, model.device, torch.float32)
    scale = float(expected.abs().max())
    torch.testing.assert_close(ours(mel), expected, rtol=0, atol=1e-5 * scale)
    torch.testing.assert_close(ours(mel[1:2]), expected[1:2], rtol=0, atol=1e-5 * scale)


def test_features_in_half_precision_are_near_whispers() -> None:
    model = lively_whisper()
    mel = noise_mel(model)[None]
    features = Encoder(model.encoder, model.device, torch.float16)(mel)
    assert features.dtype == torch.float16
    torch.testing.assert_close(
        features.float(), whispers_features(model, mel), rtol=0, atol=0.02
    )
