"""The container image as it was built: `make image-test`.

The usual tests leave this out, because it needs buildah.
"""

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil
import pytest

from tests.support.http_server import served_file
from tests.support.job_api import LIMIT_S, JobApi

IMAGE = os.environ.get("IMAGE", "localhost/whisper-serve:check")
AUDIO = Path(__file__).parent.parent / "audio"
COMMAND = ["python", "-m", "deployments.runpod"]


@pytest.fixture(scope="module")
def container() -> Iterator[str]:
    name = buildah("from", "--pull-never", IMAGE).strip()
    yield name
    buildah("rm", name)


def buildah(*arguments: str) -> str:
    done = subprocess.run(
        ["buildah", *arguments], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run(container: str, *command: str, user: str = "", **environment: str) -> list[str]:
    variables = [f"--env={name}={value}" for name, value in environment.items()]
    if user:
        variables.append(f"--user={user}")
    return [
        "buildah",
        "run",
        "--network",
        "host",
        *variables,
        container,
        "--",
        *command,
    ]


def output(container: str, *command: str, user: str = "") -> str:
    return buildah(*run(container, *command, user=user)[1:])


def test_the_image_runs_the_worker() -> None:
    inspected = buildah(
        "inspect", "--type", "image", "--format", "{{.OCIv1.Config.Cmd}}", IMAGE
    )
    assert inspected.strip() == f"[{' '.join(COMMAND)}]"


def test_it_does_not_run_as_root(container: str) -> None:
    assert (
        output(container, "python", "-c", "import os; print(os.getuid())") == "1000\n"
    )


def test_no_build_tools_and_no_caches_are_left(container: str) -> None:
    found = output(
        container,
        *("sh", "-c"),
        "command -v gcc make git pip pip3;"
        " ls /root/.cache /home/whisper/.cache /var/lib/apt/lists/* 2>/dev/null;"
        " ls -d /build 2>/dev/null; true",
        user="root",
    )
    assert found == ""


def test_the_code_is_compiled_because_the_user_cannot_write_it(container: str) -> None:
    found = output(
        container,
        "sh",
        "-c",
        "ls /app/deployments/runpod/__pycache__; test -w /app || echo sealed",
    )
    assert re.search(r"^worker\.cpython-3\d+\.pyc$", found, re.MULTILINE)
    assert "sealed" in found


def test_the_job_of_test_input_json_is_done(container: str) -> None:
    done = subprocess.run(
        run(container, *COMMAND),
        capture_output=True,
        text=True,
        timeout=LIMIT_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "completed successfully" in done.stdout
    assert "my fellow Americans" in done.stdout


def test_jobs_go_through_the_sdks_loop_and_sigterm_ends_it(container: str) -> None:
    with JobApi() as api, served_file(AUDIO / "jfk.flac") as url:
        hosts = {"WHISPER_ALLOW_HOSTS": urlsplit(url).netloc}
        command = run(container, *COMMAND, **api.environment(), **hosts)
        process = subprocess.Popen(command)
        try:
            good = {"audio": url, "word_timestamps": True}
            chunked = good | {"chunking_strategy": "auto"}
            jobs = api.submit(good, chunked, {"audio": url, "model": "giant"})
            *right, wrong = api.results(*jobs)
            for result in right:
                answer = result["output"]
                assert "ask what you can do for your country" in answer["transcription"]
                assert len(answer["word_timestamps"]) == 22
            assert len(right[1]["output"]["chunks"]) == 1
            assert wrong["error"].startswith("Invalid model: 'giant'.")
            for child in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    if child.cmdline()[1:3] == COMMAND[1:3]:
                        child.terminate()
            assert process.wait(LIMIT_S) == 0
        finally:
            process.kill()
            process.wait()
