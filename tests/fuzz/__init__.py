"""Whatever a stranger sends is answered or refused: harnesses for random bytes.

    python -m tests.fuzz TARGET [-max_total_time=600] [corpus folder ...]

searches with Google's atheris (coverage-guided, by libFuzzer), where that is installed. The targets
are the functions of `targets.TARGETS`. `test_targets.py` runs each of them on its seeds and on
random bytes in the ordinary tests, which need no atheris.

    python -m tests.fuzz.recordings --seconds 600

damages real recordings and has the service's own decoder read them, and counts what comes of it.
"""
