"""A Router's metric of decoders that died, for Prometheus."""

import functools
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.serve.metrics import Counter

# Ray's annotation allows one tag alone.
_TAGS: Any = ("signal",)


def count_death(reason: str) -> None:
    """reason: as in `DecoderDiedError`"""
    deaths().inc(tags={"signal": reason})


@functools.cache
def deaths() -> "Counter":
    """Made at the first death, because Serve adds its tags only where a replica runs by then."""
    # Ray reads its environment when it is imported, and the log is needed before that.
    from ray.serve.metrics import Counter

    return Counter(
        "whisper_decoder_deaths",
        "Processes that died while they decoded a file, or were killed at the deadline.",
        _TAGS,
    )
