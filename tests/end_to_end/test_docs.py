"""The examples of README.md and docs/ that call an application, run against the one of the tests.

Python blocks of one section run together, as a reader would type them.
"""

import contextlib
import os
import re
import signal
import subprocess
import sys
from itertools import groupby

import pytest

from deployments.local import loopback
from deployments.ray_node import handle_environment
from tests.support import javascript
from tests.support.app import App, Url, clean_environment
from tests.support.markdown import ROOT, Block, all_blocks
from tests.test_docs import is_command_of_the_project

RUN = [block for block in all_blocks() if not block.not_run]
SHELL = [b for b in RUN if b.language == "sh" and not is_command_of_the_project(b)]
PYTHON = [
    list(blocks)
    for _, blocks in groupby(
        (b for b in RUN if b.language == "python"), lambda b: (b.page, b.section)
    )
]

JAVASCRIPT = [block for block in RUN if block.language == "javascript"]

# An answer with an HTTP error fails the example.
PRELUDE = 'curl() { command curl --fail-with-body "$@"; }\n'
# Where the pages expect the application, and a server of recordings.
APPLICATION = "127.0.0.1:8000"
RECORDINGS = "127.0.0.1:8765"


def run(app: App, audio_url: Url, text: str, *program: str) -> None:
    """Run an example in the repository, which must succeed."""
    recordings = audio_url("").removeprefix("http://").removesuffix("/")
    if "http.server" in text:
        # The example starts its own server.
        recordings = f"127.0.0.1:{loopback.free_port('127.0.0.1')}"
        text = re.sub(r"\b8765\b", recordings.split(":")[1], text)
    text = text.replace(RECORDINGS, recordings)
    text = text.replace(APPLICATION, app.url.removeprefix("http://"))
    text = text.replace(".venv/bin/python", sys.executable)
    with subprocess.Popen(
        [*program, text],
        cwd=ROOT,
        env=clean_environment(handle_environment()),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            # wait, and not communicate: a server in the background keeps the pipes open.
            status = process.wait(timeout=300)
        finally:
            # Nothing is left of the group where the example started no server.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
        _, stderr = process.communicate()
    assert status == 0, stderr


@pytest.mark.parametrize("block", SHELL, ids=[b.place for b in SHELL])
def test_a_shell_example_runs(app: App, audio_url: Url, block: Block) -> None:
    run(app, audio_url, PRELUDE + block.text, "bash", "-euo", "pipefail", "-c")


@pytest.mark.parametrize("blocks", PYTHON, ids=[blocks[0].place for blocks in PYTHON])
def test_the_python_examples_of_a_section_run(
    app: App, audio_url: Url, blocks: list[Block]
) -> None:
    text = "\n".join(block.text for block in blocks)
    run(app, audio_url, text, sys.executable, "-c")


@pytest.mark.parametrize("block", JAVASCRIPT, ids=[b.place for b in JAVASCRIPT])
def test_a_javascript_example_prints_what_was_said(app: App, block: Block) -> None:
    text = block.text.replace(APPLICATION, app.url.removeprefix("http://"))
    assert re.search("country|nation", javascript.run(text, folder=ROOT))


def test_there_are_examples_of_each_kind() -> None:
    assert any("curl" in block.text for block in SHELL)
    assert any("serve.get_" in block.text for blocks in PYTHON for block in blocks)
    assert any("requests.post" in block.text for blocks in PYTHON for block in blocks)
    assert any("OpenAI(" in block.text for blocks in PYTHON for block in blocks)
    assert any("stream: true" in block.text for block in JAVASCRIPT)
