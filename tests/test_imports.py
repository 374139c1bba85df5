"""The order of rooms in deployments/: a file imports only from rooms above its own.

Read from the syntax trees, so that imports within functions and under TYPE_CHECKING count as well.
"""

from pathlib import Path

import pytest

from tests.support.source import Patch, imported_modules, module_name, patches

ROOT = Path(__file__).parents[1]
MODULES = sorted((ROOT / "deployments").rglob("*.py"))
LONGEST = 400

# From the top. The catalogue stands above the contract, whose rules need its languages.
ROOMS = [
    "catalog",
    "contract",
    "hosts",
    "config",
    "logs",
    "keys",
    "cpus",
    "audio",
    "checkpoints",
    "engine",
    "replica",
    "router",
    "http_errors",
    "security_headers",
    "proxy_uploads",
    "proxy_answers",
    "api",
    "gpu",
    "app",
    "serve_config",
    "ray_node",
    "launch",
    "drain",
    "local",
    "runpod",
]
# Rooms that import nothing but themselves.
SECLUDED = ["catalog", "engine"]

EACH_MODULE = pytest.mark.parametrize(
    "path", MODULES, ids=[module_name(path, ROOT) for path in MODULES]
)


def room_of(module: str) -> str:
    """`engine` for `deployments.engine.model.decoder`, and nothing for `deployments` itself."""
    return f"{module}.".split(".")[1]


def wrong_imports(module: str, source: str, package: str) -> list[str]:
    """What the module imports although the order of rooms forbids it."""
    room = room_of(module)
    allowed = {room}
    if room not in SECLUDED:
        allowed |= set(ROOMS[: ROOMS.index(room)]) if room else set()
    wrong = []
    for name in sorted(imported_modules(source, package)):
        top, *rest = name.split(".")
        if top in ("tools", "tests", "benchmarks") or (
            top == "deployments" and (rest or [""])[0] not in allowed
        ):
            wrong.append(name)
    return wrong


@EACH_MODULE
def test_a_module_imports_only_from_rooms_above_its_own(path: Path) -> None:
    module = module_name(path, ROOT)
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    assert wrong_imports(module, path.read_text(), package) == []


@EACH_MODULE
def test_no_module_writes_into_one_of_others(path: Path) -> None:
    assert patches(path.read_text(), "deployments") == []


@EACH_MODULE
def test_no_module_is_too_long_to_be_read_at_once(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= LONGEST


def test_every_room_is_in_the_order() -> None:
    rooms = {room_of(module_name(path, ROOT)) for path in MODULES} - {""}
    assert rooms == set(ROOMS)


@pytest.mark.parametrize(
    ("module", "source", "wrong"),
    [
        (
            "deployments.router.router",
            "import deployments.api.native",
            ["deployments.api.native"],
        ),
        (
            "deployments.router.router",
            "from deployments import app",
            ["deployments.app"],
        ),
        ("deployments.router.router", "from deployments import config", []),
        ("deployments.router.router", "from ..contract.errors import A", []),
        (
            "deployments.router.router",
            "from ..launch import start",
            ["deployments.launch.start"],
        ),
        ("deployments.router.router", "def f():\n    import tools.x", ["tools.x"]),
        (
            "deployments.engine.engine",
            "from deployments.config import A",
            ["deployments.config.A"],
        ),
        ("deployments.engine.engine", "from deployments.engine.tasks import A", []),
        (
            "deployments.catalog",
            "if TYPE_CHECKING:\n    from deployments.config import A",
            ["deployments.config.A"],
        ),
    ],
)
def test_an_import_from_below_is_found(
    module: str, source: str, wrong: list[str]
) -> None:
    assert wrong_imports(module, source, module.rpartition(".")[0]) == wrong


@pytest.mark.parametrize(
    "statement",
    [
        "requests.get = print",
        "requests.adapters.HTTPAdapter.send = print",
        "del requests.get",
        "requests.count += 1",
        "for requests.get in (1, 2): pass",
        "a, requests.get = 1, 2",
        "with a as requests.get: pass",
        "setattr(requests, 'get', print)",
        "vars(requests)['get'] = print",
        "vars(requests).update(get=print)",
        "requests.__dict__['get'] = print",
        "Adapter.send = print",
        "sys.modules['x'] = None",
        "sys.modules.pop('x')",
        "def f():\n    requests.get = print",
    ],
)
def test_a_patch_is_found(statement: str) -> None:
    source = f"import sys\nimport requests\nfrom requests.adapters import A as Adapter\n{statement}"
    assert len(patches(source, "deployments")) == 1


@pytest.mark.parametrize(
    "statement",
    [
        "session = requests.Session()\nsession.trust_env = False",
        "os.environ['A'] = 'b'",
        "from deployments import config\nconfig.value = 1",
        "class A:\n    def f(self):\n        self.requests = 1",
        "requests = None",
        "print(sys.modules['x'], requests.get)",
    ],
)
def test_what_is_no_patch_is_left_alone(statement: str) -> None:
    source = f"import os, sys\nimport requests\n{statement}"
    assert patches(source, "deployments") == []


def test_a_patch_is_told_with_its_place() -> None:
    assert patches("import a\na.b = 1", "deployments") == [Patch("a.b", 2)]
