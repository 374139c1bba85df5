"""The metric of URLs that were refused before anything was fetched from them."""

import functools
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ray.serve.metrics import Counter


def count_refused_url(reason: str) -> None:
    """Count one refusal; `UrlGuard` lists the reasons."""
    _counter().inc(tags={"reason": reason})


@functools.cache
def _counter() -> "Counter":
    """Made at the first refusal, because Serve adds its tags only where a replica runs by then."""
    # Ray reads its environment when it is imported, and the log is needed before that.
    from ray.serve.metrics import Counter

    return Counter(
        "whisper_refused_urls",
        "URLs and redirects that were refused before they were fetched.",
        ("reason",),
    )
