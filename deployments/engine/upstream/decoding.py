"""What a call of `whisper.decode` asks for, read from OpenAI's `DecodingTask`, and its result.

The engine leans on these insides of `whisper.decoding`: the attributes of `DecodingTask` and of its
decoder and logit filters, and `MaximumLikelihoodRanker`. tests/engine/upstream names them all.
"""

import numpy as np
import torch
from torch import Tensor
from whisper.decoding import (
    ApplyTimestampRules,
    BeamSearchDecoder,
    DecodingOptions,
    DecodingResult,
    DecodingTask,
    MaximumLikelihoodRanker,
    SuppressBlank,
    SuppressTokens,
)
from whisper.tokenizer import Tokenizer
from whisper.utils import compression_ratio

from deployments.engine.decoding.plan import DecodePlan, Outcome
from deployments.engine.model.transfer import to_device
from deployments.engine.upstream.model_facts import ModelFacts


def plan_for(facts: ModelFacts, options: DecodingOptions) -> DecodePlan:
    """What `whisper.decode` would do with these options.

    Raises what `DecodingTask` raises, and IndexError for a token that is not in the vocabulary.
    """
    task = DecodingTask(facts, options)
    size = facts.dims.n_vocab
    prompt: tuple[int, ...] = task.initial_tokens
    for token in prompt:
        _check(token, range(size))
    suppressed: tuple[int, ...] = ()
    suppressed_first: tuple[int, ...] = ()
    initial_timestamps: int | None = None
    for logit_filter in task.logit_filters:
        if isinstance(logit_filter, SuppressBlank):
            suppressed_first = (*task.tokenizer.encode(" "), task.tokenizer.eot)
        elif isinstance(logit_filter, SuppressTokens):
            # Upstream uses the tokens as indices, so negative ones count from the end.
            for token in logit_filter.suppress_tokens:
                _check(token, range(-size, size))
            suppressed = tuple(t % size for t in logit_filter.suppress_tokens)
        elif isinstance(logit_filter, ApplyTimestampRules):
            last = logit_filter.max_initial_timestamp_index
            timestamps = size - task.tokenizer.timestamp_begin
            initial_timestamps = timestamps if last is None else last + 1
        else:
            raise TypeError(f"unknown logit filter {type(logit_filter).__name__}")
    decoder = task.decoder
    competes = isinstance(decoder, BeamSearchDecoder)
    return DecodePlan(
        prompt=prompt,
        sot_index=task.sot_index,
        no_speech=task.tokenizer.no_speech,
        width=task.n_group,
        # Upstream stops once there are more tokens than the context holds.
        steps=min(task.sample_len, task.n_ctx + 1 - len(prompt)),
        temperature=options.temperature,
        finished_needed=decoder.max_candidates if competes else None,
        initial_timestamps=initial_timestamps,
        suppressed=suppressed,
        suppressed_first=suppressed_first,
    )


def result_of(
    outcome: Outcome, plan: DecodePlan, options: DecodingOptions, tokenizer: Tokenizer
) -> DecodingResult:
    """What `whisper.decode` makes of the sequences that were found.

    Raises what upstream's ranking raises, such as ZeroDivisionError for an empty text whose score
    is to be divided by its length.
    """
    if plan.finished_needed is not None:
        found = outcome.backpointers.finished_beams(plan.finished_needed)
    else:
        found = outcome.backpointers.rows(tokenizer.eot)
    ranker = MaximumLikelihoodRanker(options.length_penalty)
    lengths = [torch.empty(len(tokens)) for tokens, _ in found]
    (best,) = ranker.rank([lengths], [[score for _, score in found]])
    tokens, score = found[best]
    text = tokenizer.decode(tokens).strip()
    return DecodingResult(
        audio_features=torch.empty(0),
        language=options.language or "en",
        tokens=tokens,
        text=text,
        avg_logprob=score / (len(tokens) + 1),
        no_speech_prob=outcome.no_speech_prob,
        temperature=plan.temperature,
        compression_ratio=compression_ratio(text),
    )


def language_probabilities(logits: Tensor, tokenizer: Tokenizer) -> dict[str, float]:
    """The probability of each language, by its code, from the logits after the first token.

    logits: shape (vocabulary,)

    Source: `whisper.decoding.detect_language`.
    """
    tokens = to_device(tokenizer.all_language_tokens, logits.device)
    probabilities: np.ndarray = logits[tokens].softmax(-1).cpu().numpy()
    return dict(zip(tokenizer.all_language_codes, probabilities.tolist(), strict=True))


def _check(token: int, valid: range) -> None:
    """Raises the IndexError that upstream would raise later, when the token is used as an index.

    In a batch, a wrong index would reach into the rows of another window.
    """
    if token not in valid:
        raise IndexError(f"token {token} is not in the vocabulary of {valid.stop}")
