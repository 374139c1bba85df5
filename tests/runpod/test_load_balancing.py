"""The end of a load-balancing worker. The whole worker is in tests/end_to_end."""

import subprocess
import sys


def test_at_sigterm_the_requests_in_work_are_finished_first() -> None:
    with subprocess.Popen(
        [sys.executable, "-m", "tests.support.drained_router"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as worker:
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            assert worker.stdout.readline() == "serving\n"
            worker.terminate()
            assert worker.stdout.readline() == "stopping\n"
            assert worker.stdout.readline() == "in work: 1\n"
            # A second signal changes nothing.
            worker.terminate()
            print(file=worker.stdin, flush=True)
            assert worker.stdout.readline() == "in work: 0\n"
            assert worker.stdout.readline() == "alive\n"
            assert worker.wait() == 0
        finally:
            worker.kill()
