"""The import directions of the house, read from the imports themselves."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Callable
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import certifi
import httpx
import pytest

from tests.server.commands import PLAINLY
from tests.support.order import LONGEST_FIRST, TESTS
from tests.support.secrets import SECRET
from tests.support.servers import free_port
from tests.support.waiting import wait_until

PROXY = Path(__file__).parent.parent / "proxy"
FILES = sorted(path for path in PROXY.rglob("*.py") if "node_modules" not in path.parts)

#: A room may import rooms of its own floor and of those below, and no two rooms import each other.
FLOORS = [
    {"cli", "playground", "server", "serving", "worker", "__main__"},
    {"app", "application", "background", "surfaces", "container", "reload", "tracing", "plan_secrets"},
    {"startup"},
    {"console"},
    {"routes"},
    {"uploads"},
    {"calls"},
    {"alerts", "jobs"},
    {"auth", "http", "limits", "pictures"},
    {"outbound"},
    {"tenants", "upstream"},
    {"stores", "catalog", "targets", "telemetry"},
    {"redaction"},
    {"certificates", "settings", "errors", "clock", "drain", "ids", "libpq", "listeners", "networks", "origins"}
    | {"numbers", "log_context", "recurring", "singleflight", "spreadsheets", "store_check", "strict_json"}
    | {"__init__"},
]
SANDBOX = "sandbox"
MOST_LINES, MOST_FUNCTION_LINES = 300, 45
#: The kinds of stores: each has a room in `stores/`.
STORES = ("memory", "redis", "sql", "sqlite")
#: Foreign libraries with one home each.
HOMES = {
    "itsdangerous": {"auth/sessions.py"},
    "standardwebhooks": {"alerts/webhooks.py"},
    "altcha": {"auth/proof_of_work.py"},
    "slowapi": {"limits/rates.py", "container.py", "routes", "console"},
    "jinja2": {"console", "routes/statements.py"},
    "limits": {"limits/rates.py", "limits/flood_store.py"},
    "httpx": {
        "upstream",
        "app.py",
        "tracing.py",
        "outbound.py",
        "auth/siteverify.py",
        "cli/answers.py",
        "cli/deployment.py",
        "cli/doctor",
    },
    "httptools": {"server/protocol.py", "server/asgi.py", "upstream/reply_reader.py"},
    "aiohappyeyeballs": {"upstream/connector.py"},
    "joserfc": {"auth/verification.py", "auth/play_integrity.py", "tenants/key_set.py", "tenants/tiers.py"},
    "sqlalchemy": {"stores/sql/"},
    "alembic": {"stores/sql/"},
    "asyncpg": {"stores/sql/"},
    "sqlite3": {"stores/sql/", "stores/sqlite/"},
    "redis": {"stores/redis/"},
    "hiredis": {"stores/redis/"},
    "typer": {"cli"},
    "uvicorn": {"playground/dev.py", "server"},
    "yaml": {"tenants/plan_file.py", "tenants/plan_yaml.py", "routes/openapi.py"},
    "jsonschema_rs": {"catalog/catalog.py"},
    "idna": {"origins.py", "tenants/addresses.py"},
    "opentelemetry": {"telemetry/traces.py", "upstream/traced_engine.py"},
    "prometheus_client": {"telemetry", "routes/operations.py"},
    "PIL": {"sandbox", "pictures/decoding.py"},
    "puremagic": {"uploads/sniffing.py"},
    "python_multipart": {"uploads/multipart.py"},
    "cryptography": {"uploads/sealing.py", "auth/app_attest.py"},
    "cbor2": {"auth/app_attest.py"},
}


def room_of(path: Path) -> str:
    return path.relative_to(PROXY).parts[0].removesuffix(".py")


@dataclass(frozen=True)
class Source:
    """What the tests ask of a file. Its tree is not kept: each garbage collection would look through all of them.

    Attributes:
        imports: the full names of all modules it imports, wherever in the file.
        long: its length if it is too long, and its functions that are so and do not say why: `# Long: …`.
    """

    imports: frozenset[str]
    long: frozenset[str]
    reads_environ: bool


@cache
def source_of(path: Path) -> Source:
    text = path.read_text()
    nodes, lines = list(ast.walk(ast.parse(text))), text.splitlines()
    functions = [node for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    long = {function.name for function in functions if is_long_without_a_reason(function, lines)}
    if len(lines) > MOST_LINES:
        long.add(f"{len(lines)} lines")
    reads_environ = any(isinstance(node, ast.Attribute) and node.attr == "environ" for node in nodes)
    return Source(imports_among(nodes), frozenset(long), reads_environ)


def imports_among(nodes: list[ast.AST]) -> frozenset[str]:
    names: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return frozenset(names)


def is_long_without_a_reason(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> bool:
    end = function.end_lineno or 0
    has_reason = any(line.strip().startswith("# Long: ") for line in lines[function.lineno : end])
    return end - function.lineno >= MOST_FUNCTION_LINES and not has_reason


def imports_of(path: Path) -> frozenset[str]:
    return source_of(path).imports


@cache
def own_rooms(path: Path) -> frozenset[str]:
    found = {name.split(".")[1] for name in imports_of(path) if name.startswith("proxy.")}
    # `from proxy import x` also names things that are no modules.
    return frozenset(room for room in found if room == SANDBOX or any(room in floor for floor in FLOORS))


def floor_of(room: str) -> int:
    return next(number for number, floor in enumerate(FLOORS) if room in floor)


def test_every_room_has_a_floor() -> None:
    unknown = {room_of(path) for path in FILES} - set().union(*FLOORS) - {SANDBOX}
    assert not unknown


def assert_none(found: Callable[[Path], AbstractSet[str]]) -> None:
    """Nothing is found in any file. A test for each file would take longer than looking through them."""
    faults = {str(path.relative_to(PROXY)): some for path in FILES if (some := found(path))}
    assert not faults


def forbidden_rooms(path: Path) -> set[str]:
    """What a file imports that stands above its room; only the command line knows the sandbox."""
    room = room_of(path)
    if room == SANDBOX:
        return own_rooms(path) - {SANDBOX, "catalog"}
    floor = floor_of(room)
    above = {other for other in own_rooms(path) - {SANDBOX, room} if floor_of(other) < floor}
    return above if floor == 0 else above | own_rooms(path) & {SANDBOX}


def test_imports_go_one_way() -> None:
    assert_none(forbidden_rooms)


def libraries_away_from_home(path: Path) -> set[str]:
    where = str(path.relative_to(PROXY))
    if where.startswith(SANDBOX):
        return set()
    strangers = {name.split(".")[0] for name in imports_of(path)} & set(HOMES)
    return {name for name in strangers if not any(where.startswith(home) for home in HOMES[name])}


def test_foreign_libraries_have_one_home() -> None:
    assert_none(libraries_away_from_home)


def test_no_two_rooms_import_each_other() -> None:
    """Nor do any more in a ring. Imports for types alone count as others do."""
    imports: dict[str, set[str]] = {}
    for path in FILES:
        imports.setdefault(room_of(path), set()).update(own_rooms(path) - {room_of(path), "__init__"})
    # Rooms that import nothing but what is left over by the others can be taken away; a ring stays.
    while free := [room for room, others in imports.items() if not others & imports.keys()]:
        for room in free:
            del imports[room]
    assert not imports


def test_limits_never_know_upstream() -> None:
    for path in FILES:
        if room_of(path) in ("limits", "tenants"):
            assert "upstream" not in own_rooms(path), path


def test_routes_know_no_driver_and_no_concrete_store() -> None:
    stores = tuple(f"proxy.stores.{kind}" for kind in STORES)
    for path in FILES:
        if room_of(path) == "routes":
            assert not {name for name in imports_of(path) if name.startswith(stores)}, path


def test_stores_import_one_way() -> None:
    """Each kind of store knows the protocols, and none is known to them. SQLite's own SQL knows no SQLAlchemy."""
    allowed = {"": {""}, **{kind: {"", kind} for kind in STORES}, "sql": {"", "sqlite", "sql"}}
    for path in FILES:
        if room_of(path) == "stores":
            kind = path.relative_to(PROXY).parts[1]
            names = {name.split(".")[2] for name in imports_of(path) if name.startswith("proxy.stores.")}
            own = {name if name in STORES else "" for name in names}
            assert own <= allowed[kind if kind in STORES else ""], path


def test_only_a_process_that_serves_imports_the_application() -> None:
    importers = {room_of(path) for path in FILES if "app" in own_rooms(path)}
    assert importers <= {"playground", "worker"}


#: What only some processes need would take time from every start, and memory from every process.
UNUSED = {
    "alembic",
    "asyncpg",
    "redis",
    "hiredis",
    "rich",
    "pygments",
    "PIL",
    "cryptography",
    "cbor2",
    "joserfc",
    "sqlalchemy.dialects.postgresql",
    "sqlalchemy.ext.asyncio",
    "sqlalchemy.orm",
    "greenlet",
    "jinja2",
    "proxy.console",
    "proxy.sandbox",
    "proxy.playground.dev",
}
#: The command line's parser and its other commands.
PARSER = {"typer", "proxy.cli"}
#: What serves calls, which the command line does without, as does the process that supervises workers.
SERVES = {"proxy.app", "proxy.container", "proxy.surfaces", "aiohappyeyeballs"}


def test_the_command_line_loads_only_what_it_uses() -> None:
    script = f"import sys, proxy.cli; print(*sorted({UNUSED | SERVES} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


@pytest.fixture
def served_environ(tmp_path: Path) -> dict[str, str]:
    """The environment of a server with a plan file, a SQLite file at this version, and no Redis."""
    (tmp_path / "plans.yaml").write_text(
        "plans: {free: {endpoints: [fal-ai/llava-next]}}\ntenants: [{id: acme, plan: free}]\n"
    )
    environ = {
        "FAL_KEY": "key:secret",
        "PROXY_SESSION_SECRETS": SECRET,
        "PROXY_DATABASE_URL": f"sqlite:///{tmp_path / 'jobs.db'}",
        "PROXY_CONFIG": str(tmp_path / "plans.yaml"),
        "PROXY_LOG_LEVEL": "warning",
        "SSL_CERT_FILE": certifi.where(),
    }
    # The start that makes the tables needs alembic.
    subprocess.run([sys.executable, "-m", "proxy", "migrate"], env=environ, capture_output=True, check=True)
    return environ


def test_a_server_with_a_file_and_no_redis_loads_only_what_it_uses(
    served_environ: dict[str, str], tmp_path: Path
) -> None:
    port = free_port()
    environ = {**served_environ, "PROXY_PORT": str(port), "PYTHONPROFILEIMPORTTIME": "1"}
    with (tmp_path / "imports").open("w") as imports:
        process = subprocess.Popen([sys.executable, "-m", "proxy", "serve"], env=environ, stderr=imports)
        try:
            wait_until(lambda: _is_ready(process, port), "the server is not ready")
        finally:
            process.terminate()
            process.wait()
    loaded = {line.rpartition("|")[2].strip() for line in (tmp_path / "imports").read_text().splitlines()}
    assert {"proxy.app", "aiohappyeyeballs", "sqlalchemy"} <= loaded
    assert loaded & (UNUSED | PARSER) == set()


def _is_ready(process: subprocess.Popen[bytes], port: int) -> bool:
    assert process.poll() is None
    with suppress(httpx.TransportError):
        return httpx.get(f"http://127.0.0.1:{port}/readyz", **PLAINLY).status_code == 200
    return False


def test_the_environment_is_read_where_a_process_starts() -> None:
    readers = {room_of(path) for path in FILES if source_of(path).reads_environ}
    assert readers <= {"cli", "serving", "worker"}


def test_files_and_functions_are_short() -> None:
    assert_none(lambda path: source_of(path).long)


def test_files_that_start_first_exist() -> None:
    missing = [name for name in LONGEST_FIRST if not (TESTS / name).is_file()]
    assert not missing, f"tests/support/order.py names files that are gone: {missing}"
