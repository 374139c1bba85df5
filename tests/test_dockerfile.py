"""The Dockerfile, as far as it can be checked without building it; `make image-test` does that."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

from deployments import proxy_answers

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=str(Path(sys.executable).parent))
    assert hadolint is not None
    done = subprocess.run(
        [hadolint, str(ROOT / "Dockerfile")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (0, "")


def test_everything_that_is_copied_is_there_and_let_through() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    let_through = {line[1:] for line in ignored if line.startswith("!")}
    flat = DOCKERFILE.replace("\\\n", " ")
    copied = [
        source
        for line in re.findall(r"^COPY (?!--from)(.*)$", flat, re.MULTILINE)
        for source in line.split()[:-1]
    ]
    assert copied
    for source in copied:
        assert (ROOT / source).exists()
        assert any(
            source == name or source.startswith(f"{name}/") for name in let_through
        )


def test_ray_finds_the_application_and_the_proxys_middleware() -> None:
    assert "PYTHONPATH=/app " in DOCKERFILE and "\nWORKDIR /app\n" in DOCKERFILE
    assert f"{proxy_answers.VARIABLE}={proxy_answers.CALLBACK} " in DOCKERFILE


def test_no_port_is_exposed_and_the_user_is_not_root() -> None:
    assert "EXPOSE" not in DOCKERFILE
    assert re.findall(r"^USER (.*)$", DOCKERFILE, re.MULTILINE) == ["1000"]
