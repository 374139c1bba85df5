"""What is relied on of RunPod's SDK, by name: an upgrade that changes any of it fails here."""

import ast
import inspect
from pathlib import Path

import aiohttp
import pytest
import runpod.serverless
from runpod.serverless.modules import rp_http, rp_job, worker_state

from deployments.runpod import sdk

ROOT = Path(__file__).parents[2]
OURS = sorted((ROOT / "deployments" / "runpod").glob("*.py"))


def test_the_version_is_the_pinned_one() -> None:
    assert f"runpod=={sdk.VERSION}" in (ROOT / "requirements.txt").read_text()


def test_the_urls_of_the_polls_are_the_sdks(monkeypatch: pytest.MonkeyPatch) -> None:
    base = "https://example.com/v2/endpoint"
    monkeypatch.setattr(rp_job, "JOB_GET_URL", f"{base}/job-take/pod?gpu=G")
    assert sdk.take_url(1) == f"{base}/job-take/pod?gpu=G&job_in_progress=0"
    several = f"{base}/job-take-batch/pod?gpu=G&batch_size=3&job_in_progress="
    assert sdk.take_url(3) == f"{several}0"
    assert sdk.stop_url() == f"{base}/job-stop/pod?gpu=G"
    sdk.JobsProgress().add("job")
    try:
        assert sdk.take_url(3) == f"{several}1"
    finally:
        sdk.JobsProgress().remove("job")
    monkeypatch.setattr(rp_job, "JOB_GET_URL", f"{base}/other/pod")
    assert sdk.stop_url() is None


def test_start_takes_a_dict_with_the_handler() -> None:
    assert list(inspect.signature(runpod.serverless.start).parameters) == ["config"]


async def test_the_session_sends_the_bare_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RUNPOD_AI_API_KEY", "the-key")
    async with sdk.AsyncClientSession() as session:
        assert isinstance(session, aiohttp.ClientSession)
        assert session.headers["Authorization"] == "the-key"


def test_the_urls_name_the_job(monkeypatch: pytest.MonkeyPatch) -> None:
    assert isinstance(rp_http.JOB_DONE_URL, str)
    assert isinstance(rp_http.JOB_STREAM_URL, str)
    monkeypatch.setattr(sdk, "JOB_DONE_URL", "https://example.com/done/pod/$ID?gpu=G")
    monkeypatch.setattr(sdk, "JOB_STREAM_URL", "https://example.com/stream/$ID?gpu=G")
    assert sdk.result_url("j") == "https://example.com/done/pod/j?gpu=G&isStream=false"
    assert sdk.stream_url("j") == "https://example.com/stream/j?gpu=G&isStream=false"


def test_the_record_of_jobs_in_work_is_one_and_tells_its_mirror() -> None:
    mirrored: list[str | None] = []

    class Mirror:
        def set(self, ids: str | None) -> None:
            mirrored.append(ids)

    jobs = worker_state.JobsProgress()
    assert jobs is sdk.JobsProgress()
    jobs.set_mirror(Mirror())
    try:
        jobs.add("first")
        jobs.remove("first")
        jobs.remove("never added")
    finally:
        jobs.set_mirror(None)
    assert mirrored == [None, "first", None, None]


def test_without_a_job_api_or_with_a_test_input_there_is_a_test_job(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sys.argv", ["worker"])
    monkeypatch.setattr(sdk, "IS_LOCAL_TEST", True)
    assert sdk.has_test_job()
    monkeypatch.setattr(sdk, "IS_LOCAL_TEST", False)
    assert not sdk.has_test_job()
    monkeypatch.setattr("sys.argv", ["worker", "--test_input", "{}"])
    assert sdk.has_test_job()


@pytest.mark.parametrize(
    ("arguments", "port", "ignored"),
    [
        ([], "", []),
        ([], "0", []),
        (["--test_input", "{}"], "", []),
        (["--rp_serve_api"], "", ["--rp_serve_api"]),
        (["--rp_log_level=DEBUG"], "9000", ["--rp_log_level", "RUNPOD_REALTIME_PORT"]),
    ],
)
def test_options_of_the_sdk_that_have_no_effect_are_known(
    monkeypatch: pytest.MonkeyPatch, arguments: list[str], port: str, ignored: list[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["worker", *arguments])
    monkeypatch.setenv("RUNPOD_REALTIME_PORT", port)
    assert sdk.ignored_options() == ignored


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_one_module_alone_imports_the_sdk_and_none_patches_a_module(path: Path) -> None:
    imported: set[str] = set()
    names: set[str] = set()
    assigned: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
            names |= {alias.asname or alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            imported.add(node.module or "")
            names |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, ast.Attribute | ast.Subscript) and not isinstance(
            node.ctx, ast.Load
        ):
            target: ast.expr = node
            while isinstance(target, ast.Attribute | ast.Subscript):
                target = target.value
            assigned |= {target.id} if isinstance(target, ast.Name) else set()
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "setattr"
    assert path.name == "sdk.py" or not any(
        name.split(".")[0] == "runpod" for name in imported
    )
    assert not assigned & names
