"""A loaded Whisper model as faster-whisper reads it: the same weights in CTranslate2's layout.

Nothing is downloaded.

The counterpart of `WhisperLoader` in ctranslate2/converters/transformers.py and of
`TikTokenConverter` in transformers/convert_slow_tokenizer.py, which start from other files than
OpenAI's.
"""

import itertools
import json
import math
import tempfile
from collections.abc import Iterable
from pathlib import Path

import torch
from ctranslate2.specs.attention_spec import MultiHeadAttentionSpec
from ctranslate2.specs.common_spec import LayerNormSpec, LinearSpec
from ctranslate2.specs.model_spec import LayerSpec
from ctranslate2.specs.whisper_spec import WhisperSpec
from faster_whisper import WhisperModel
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from torch import nn
from whisper.model import (
    AudioEncoder,
    MultiHeadAttention,
    ResidualAttentionBlock,
    TextDecoder,
    Whisper,
)
from whisper.tokenizer import Tokenizer as OfficialTokenizer
from whisper.tokenizer import get_tokenizer


def load(model: Whisper, device: str, compute_type: str, threads: int) -> WhisperModel:
    """A faster-whisper model with the weights of `model`, which stays as it is.

    device: "cuda" or "cpu"
    compute_type: CTranslate2's: "float32", "float16", ...
    threads: of the CPU
    """
    with tempfile.TemporaryDirectory(prefix="faster-whisper-") as folder:
        write(model, Path(folder))
        return WhisperModel(
            folder, device=device, compute_type=compute_type, cpu_threads=threads
        )


def write(model: Whisper, folder: Path) -> None:
    """Write all files of a faster-whisper model into `folder`, which exists."""
    tokenizer = get_tokenizer(
        model.is_multilingual, num_languages=model.num_languages, task="transcribe"
    )
    spec = _spec(model)
    spec.register_vocabulary(_vocabulary(tokenizer, model.dims.n_vocab))
    spec.config.suppress_ids = list(tokenizer.non_speech_tokens)
    spec.config.suppress_ids_begin = [*tokenizer.encode(" "), tokenizer.eot]
    spec.config.lang_ids = sorted(tokenizer.all_language_tokens)
    spec.config.alignment_heads = model.alignment_heads.cpu().indices().T.tolist()
    spec.validate()
    # OpenAI's checkpoints hold fp16, which `load_model` widens: written back, they take half the
    # disk.
    spec.optimize("float16" if _fits_half(model.parameters()) else None)
    spec.save(str(folder))
    _fast_tokenizer(tokenizer).save(str(folder / "tokenizer.json"))
    features = {"feature_size": model.dims.n_mels}
    (folder / "preprocessor_config.json").write_text(json.dumps(features))


def _fits_half(weights: Iterable[torch.Tensor]) -> bool:
    return all(torch.equal(weight, weight.half().to(weight)) for weight in weights)


def _spec(model: Whisper) -> WhisperSpec:
    dims = model.dims
    spec = WhisperSpec(
        dims.n_audio_layer, dims.n_audio_head, dims.n_text_layer, dims.n_text_head
    )
    _set_encoder(spec.encoder, model.encoder)
    _set_decoder(spec.decoder, model.decoder)
    return spec


def _set_encoder(spec: LayerSpec, encoder: AudioEncoder) -> None:
    _set_linear(spec.conv1, encoder.conv1)
    _set_linear(spec.conv2, encoder.conv2)
    spec.position_encodings.encodings = encoder.positional_embedding.cpu()
    _set_norm(spec.layer_norm, encoder.ln_post)
    for layer, block in zip(spec.layer, encoder.blocks, strict=True):
        _set_block(layer, block)


def _set_decoder(spec: LayerSpec, decoder: TextDecoder) -> None:
    spec.embeddings.weight = decoder.token_embedding.weight.detach().cpu()
    spec.projection.weight = spec.embeddings.weight
    spec.position_encodings.encodings = decoder.positional_embedding.detach().cpu()
    _set_norm(spec.layer_norm, decoder.ln)
    for layer, block in zip(spec.layer, decoder.blocks, strict=True):
        _set_block(layer, block)
        attention = block.cross_attn
        _set_linear(layer.attention.linear[0], attention.query)
        _set_linear(layer.attention.linear[1], attention.key, attention.value)
        _set_attention_ends(layer.attention, attention, block.cross_attn_ln)


def _set_block(spec: LayerSpec, block: ResidualAttentionBlock) -> None:
    """What layers of encoder and decoder have in common."""
    attention = block.attn
    stacked = (attention.query, attention.key, attention.value)
    _set_linear(spec.self_attention.linear[0], *stacked)
    _set_attention_ends(spec.self_attention, attention, block.attn_ln)
    _set_norm(spec.ffn.layer_norm, block.mlp_ln)
    _set_linear(spec.ffn.linear_0, block.mlp[0])
    _set_linear(spec.ffn.linear_1, block.mlp[2])


def _set_attention_ends(
    spec: MultiHeadAttentionSpec, attention: MultiHeadAttention, norm: nn.LayerNorm
) -> None:
    _set_norm(spec.layer_norm, norm)
    _set_linear(spec.linear[-1], attention.out)


def _set_linear(spec: LinearSpec, *modules: nn.Linear | nn.Conv1d) -> None:
    """Projections of the same input are stacked into one."""
    # Whisper's keys have no bias; the stacked form needs zeros in its place.
    biases = [
        torch.zeros(module.weight.shape[0]) if module.bias is None else module.bias
        for module in modules
    ]
    weights = [module.weight.detach().cpu() for module in modules]
    spec.weight = torch.cat(weights)
    spec.bias = torch.cat([bias.detach().cpu() for bias in biases])


def _set_norm(spec: LayerNormSpec, norm: nn.LayerNorm) -> None:
    spec.gamma = norm.weight.detach().cpu()
    spec.beta = norm.bias.detach().cpu()


def _vocabulary(tokenizer: OfficialTokenizer, size: int) -> list[str]:
    special = {token: text for text, token in tokenizer.special_tokens.items()}
    words = [_spell(word) for word in _words(tokenizer)]
    return [*words, *(special[token] for token in range(len(words), size))]


def _fast_tokenizer(tokenizer: OfficialTokenizer) -> Tokenizer:
    """The same tokens for Hugging Face's library.

    Timestamps are left out, as in its own files of Whisper.
    """
    ranks = {word: rank for rank, word in enumerate(_words(tokenizer))}
    merges = [_last_merge(word, ranks) for word in ranks if len(word) > 1]
    fast = Tokenizer(
        models.BPE(
            vocab={_spell(word): rank for word, rank in ranks.items()},
            merges=[(_spell(left), _spell(right)) for left, right in merges],
        )
    )
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    special = sorted(tokenizer.special_tokens.items(), key=lambda item: item[1])
    before_timestamps = [
        AddedToken(text, normalized=False, special=True)
        for text, token in special
        if token < tokenizer.timestamp_begin
    ]
    fast.add_special_tokens(before_timestamps)
    return fast


def _words(tokenizer: OfficialTokenizer) -> list[bytes]:
    """All tokens that are no special ones, by number, which is their rank in byte-pair encoding."""
    encoding = tokenizer.encoding
    return [encoding.decode_single_token_bytes(rank) for rank in range(tokenizer.eot)]


def _last_merge(word: bytes, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts that byte-pair encoding joins last to make `word`."""
    parts = [word[i : i + 1] for i in range(len(word))]
    while len(parts) > 2:
        joined = [left + right for left, right in itertools.pairwise(parts)]
        first = min(range(len(joined)), key=lambda i: ranks.get(joined[i], math.inf))
        parts[first : first + 2] = [joined[first]]
    return parts[0], parts[1]


def _spell(word: bytes) -> str:
    return "".join(_LETTERS[byte] for byte in word)


def _byte_letters() -> list[str]:
    """GPT-2's letter for each byte: `bytes_to_unicode` in openai/gpt-2, src/encoder.py."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in printable)
    letters = {byte: chr(byte) for byte in printable}
    letters |= {byte: chr(256 + number) for number, byte in enumerate(others)}
    return [letters[byte] for byte in range(256)]


_LETTERS = _byte_letters()
