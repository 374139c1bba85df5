"""What the engine relies on of openai-whisper's insides; an upgrade that changes it fails here."""

import ast
import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from whisper import decoding, timing
from whisper.decoding import DecodingOptions, DecodingTask
from whisper.model import Whisper

import deployments.engine
from deployments.engine.upstream import transcribe
from deployments.engine.upstream.model_facts import ModelFacts
from deployments.engine.upstream.timing import find_alignment

ROOT = Path(deployments.engine.__file__).parent

# What the engine imports from whisper outside upstream/: constants, types and the model's classes.
PUBLIC = {
    "whisper.audio.N_SAMPLES",
    "whisper.audio.SAMPLE_RATE",
    "whisper.decoding.DecodingOptions",
    "whisper.decoding.DecodingResult",
    "whisper.model.AudioEncoder",
    "whisper.model.ModelDimensions",
    "whisper.model.ResidualAttentionBlock",
    "whisper.model.TextDecoder",
    "whisper.model.Whisper",
    "whisper.tokenizer.Tokenizer",
}
# What upstream/ imports besides.
UPSTREAM = {
    "whisper._ALIGNMENT_HEADS",
    "whisper.audio.FRAMES_PER_SECOND",
    "whisper.audio.HOP_LENGTH",
    "whisper.audio.N_FFT",
    "whisper.audio.N_FRAMES",
    "whisper.audio.TOKENS_PER_SECOND",
    "whisper.audio.mel_filters",
    "whisper.decoding.ApplyTimestampRules",
    "whisper.decoding.BeamSearchDecoder",
    "whisper.decoding.DecodingTask",
    "whisper.decoding.MaximumLikelihoodRanker",
    "whisper.decoding.SuppressBlank",
    "whisper.decoding.SuppressTokens",
    "whisper.timing",
    "whisper.timing.WordTiming",
    "whisper.tokenizer.get_tokenizer",
    "whisper.utils.compression_ratio",
}


def imported(path: Path) -> set[str]:
    """Names that a file imports from whisper."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.split(".")[0] == "whisper"}


def test_only_upstream_imports_the_insides_of_whisper() -> None:
    inside = {*(ROOT / "upstream").rglob("*.py")}
    outside = {*ROOT.rglob("*.py")} - inside
    assert set[str]().union(*map(imported, outside)) == PUBLIC
    assert set[str]().union(*map(imported, inside)) - PUBLIC == UPSTREAM


@pytest.mark.parametrize("name", sorted(PUBLIC | UPSTREAM - {"whisper.timing"}))
def test_what_is_imported_exists(name: str) -> None:
    module, attribute = name.rsplit(".", 1)
    assert hasattr(importlib.import_module(module), attribute)


@pytest.fixture(scope="module")
def task(tiny_model: Whisper) -> DecodingTask:
    options = DecodingOptions(language="en", beam_size=2, patience=2.0)
    return DecodingTask(ModelFacts.of(tiny_model, tiny_model.device), options)


def test_a_decoding_task_has_what_a_plan_is_read_from(task: DecodingTask) -> None:
    assert isinstance(task.initial_tokens, tuple)
    assert task.initial_tokens[task.sot_index] == task.tokenizer.sot
    assert (task.n_group, task.sample_len, task.n_ctx) == (2, 224, 448)
    assert task.decoder.max_candidates == 4
    blank, tokens, timestamps = task.logit_filters
    assert isinstance(blank, decoding.SuppressBlank)
    assert isinstance(tokens, decoding.SuppressTokens)
    assert len(tokens.suppress_tokens) > 80
    assert isinstance(timestamps, decoding.ApplyTimestampRules)
    assert timestamps.max_initial_timestamp_index == 50


def test_a_tokenizer_names_its_tokens_and_languages(task: DecodingTask) -> None:
    for name in ("eot", "sot", "no_speech", "no_timestamps", "timestamp_begin"):
        assert isinstance(getattr(task.tokenizer, name), int)
    assert len(task.tokenizer.all_language_tokens) == 99
    assert len(task.tokenizer.all_language_codes) == 99


def test_the_ranker_takes_tokens_and_scores_of_each_group() -> None:
    ranker = decoding.MaximumLikelihoodRanker(None)
    parameters = list(inspect.signature(ranker.rank).parameters)
    assert parameters == ["tokens", "sum_logprobs"]


def test_the_dynamic_time_warping_is_pure_python_below_its_compiler() -> None:
    assert inspect.isfunction(timing.dtw_cpu.py_func)


def test_the_alignment_takes_the_arguments_that_ours_takes() -> None:
    official = inspect.signature(timing.find_alignment).parameters
    ours = inspect.signature(find_alignment).parameters
    assert [*official][:5] == [*ours][:5]


def test_names_that_are_replaced_are_looked_up_in_the_private_copies() -> None:
    names = {*transcribe.OFFICIAL.transcribe.__code__.co_names}
    assert {"log_mel_spectrogram", "pad_or_trim", "add_word_timestamps"} <= names
    assert "find_alignment" in transcribe.TIMING.add_word_timestamps.__code__.co_names


def test_local_variables_that_are_read_exist() -> None:
    code = transcribe.OFFICIAL.transcribe.__code__
    assert {transcribe.SECONDS_DONE, transcribe.SEGMENTS_DONE} <= {*code.co_varnames}


def test_a_replaced_name_that_does_not_exist_fails_at_import() -> None:
    with pytest.raises(ImportError, match="has no no_such_function"):
        transcribe.private_copy("whisper.timing", no_such_function=None)


LAYER = ("attn", "attn_ln", "mlp", "mlp_ln", "cross_attn", "cross_attn_ln")


@pytest.mark.parametrize(
    ("part", "names"),
    [
        ("encoder", ("conv1", "conv2", "positional_embedding", "blocks", "ln_post")),
        ("decoder", ("token_embedding", "positional_embedding", "blocks", "ln")),
    ],
)
def test_a_model_is_built_of_the_modules_that_are_copied(
    tiny_model: Whisper, part: str, names: tuple[str, ...]
) -> None:
    module: Any = getattr(tiny_model, part)
    assert all(hasattr(module, name) for name in names)
    block = module.blocks[0]
    assert all(hasattr(block, name) for name in LAYER)
    for attention in filter(None, (block.attn, block.cross_attn)):
        assert attention.n_head == 2
        for name in ("query", "key", "value", "out"):
            assert getattr(attention, name).weight.shape == (32, 32)
        assert attention.key.bias is None
    assert [len(block.mlp), *block.mlp[0].weight.shape] == [3, 128, 32]
    assert block.mlp[2].weight.shape == (32, 128)


def test_a_model_tells_its_alignment_heads(tiny_model: Whisper) -> None:
    layers, heads = tiny_model.alignment_heads.indices()
    assert layers.shape == heads.shape
