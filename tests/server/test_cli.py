"""The commands that work on the database: what they print, how they end, and their effect on a running server."""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import subprocess
import sys

import httpx
import jsonschema_rs
import pytest
import yaml

from proxy import __version__
from proxy.auth.sessions import Sessions
from proxy.clock import SystemClock
from proxy.settings import Secret
from proxy.stores.sql import migrate
from tests.server.commands import PLAINLY, PROXY, SERVABLE
from tests.server.conftest import PLANS, Cli, Running
from tests.support.limited import COUNTING, NEXT
from tests.support.secrets import SECRET
from tests.support.waiting import wait_until


def call(url: str, credential: str, path: str = "/v1/session", **options: object) -> httpx.Response:
    headers = {"authorization": f"Bearer {credential}"}
    method = "POST" if "json" in options else "GET"
    return httpx.request(method, url + path, headers=headers, **PLAINLY, **options)


def test_the_version_is_printed(cli: Cli) -> None:
    assert cli.data("--version") == f"fal-proxy {__version__}"


@pytest.mark.parametrize("command", ["dev", "sandbox"])
def test_without_its_picture_library_the_sandbox_says_what_to_install(command: str) -> None:
    """The image leaves it out."""
    without = "import sys; sys.modules['PIL'] = None; from proxy.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", without, command], capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (1, "")
    assert "the sandbox needs Pillow" in done.stderr and "install fal-proxy with pip" in done.stderr
    assert "Traceback" not in done.stderr


OF_ONE_USER = [
    [*command, "acme"] for command in (["jobs", "list", "--tenant"], ["usage", "--tenant"], ["grants", "list"])
]
OVERRIDE = ["overrides", "set", "acme", "alice", "--until", "2099-01-31", "--limits"]


# Tenants

PRICES = [{"id": id_, "price_per_compute_second": 0.0006} for id_ in (NEXT, COUNTING)]


def test_the_tenants_of_the_plan_file_are_there_before_the_server_ever_ran(cli: Cli) -> None:
    assert cli.data("tenants", "list") == "acme\tfull\nsmall\tnarrow"
    rows = json.loads(cli.data("tenants", "list", "--json"))
    assert [row["id"] for row in rows] == ["acme", "small"] and rows[0]["guests"]["enabled"] is False


def test_without_a_plan_file_there_is_a_default_tenant(cli: Cli) -> None:
    done = cli.run("tenants", "list", PROXY_CONFIG="")
    assert (done.code, done.stdout, done.stderr) == (0, "default\tdefault\n", "")


@pytest.mark.parametrize("form", [(), ("--json",)])
def test_show_prints_a_tenant_with_its_limits(cli: Cli, form: tuple[str, ...]) -> None:
    shown = json.loads(cli.data("tenants", "show", "small", *form))
    assert (shown["id"], shown["plan"]) == ("small", "narrow")
    assert shown["limits"]["endpoints"] == ["fal-ai/llava-next"] and shown["limits"]["max_tokens"] == 64


def test_an_unknown_tenant_is_refused_and_the_known_ones_are_named(cli: Cli) -> None:
    for command in (["tenants", "show", "acmee"], ["keys", "list", "acmee"], ["keys", "create", "acmee"]):
        done = cli.run(*command)
        assert (done.code, done.stdout) == (1, "")
        assert done.stderr == "there is no tenant acmee; there are: acme, small\n"


def test_apply_is_idempotent_and_prints_whether_it_changed_anything(cli: Cli) -> None:
    file = cli.folder / "more.yaml"
    file.write_text(yaml.safe_dump({**PLANS, "tenants": [{"id": "globex", "plan": "narrow"}]}))
    assert cli.data("tenants", "apply", str(file)) == "changed"
    assert cli.data("tenants", "apply", str(file)) == "unchanged"
    assert cli.data("tenants", "list") == "acme\tfull\nglobex\tnarrow\nsmall\tnarrow"


def test_what_was_applied_is_not_undone_by_the_next_command(cli: Cli) -> None:
    file = cli.folder / "moved.yaml"
    file.write_text(yaml.safe_dump({**PLANS, "tenants": [{"id": "acme", "plan": "narrow"}]}))
    cli.data("tenants", "list")
    assert cli.data("tenants", "apply", str(file)) == "changed"
    assert cli.data("tenants", "list") == "acme\tnarrow\nsmall\tnarrow"


def test_apply_refuses_a_file_that_is_wrong_and_changes_nothing(cli: Cli) -> None:
    file = cli.folder / "wrong.yaml"
    file.write_text(yaml.safe_dump({"plans": {"full": {"endpoints": ["fal-ai/flux/dev"]}}}))
    done = cli.run("tenants", "apply", str(file))
    assert (done.code, done.stdout) == (1, "") and "fal-ai/flux/dev is not in the catalogue" in done.stderr
    done = cli.run("tenants", "apply", "gone.yaml")
    assert (done.code, done.stdout, done.stderr) == (1, "", "there is no file gone.yaml\n")
    for no_file in (".", "a" * 5000):
        done = cli.run("tenants", "apply", no_file)
        assert (done.code, done.stdout) == (1, "") and done.stderr.startswith(f"there is no file {no_file[:200]}")
    assert len(json.loads(cli.data("tenants", "show", "acme"))["limits"]["endpoints"]) == 2


def test_apply_reads_a_pipe(cli: Cli) -> None:
    cli.data("tenants", "list")
    file = yaml.safe_dump({**PLANS, "tenants": [{"id": "globex", "plan": "narrow"}]})
    for more, printed in ((["--dry-run"], 'create tenant globex\n    plan: + "narrow"\n'), ([], "changed\n")):
        command = [*PROXY, "tenants", "apply", "/dev/stdin", *more]
        done = subprocess.run(command, input=file, env=cli.environ, cwd=cli.folder, capture_output=True, text=True)
        assert (done.returncode, done.stdout) == (0, printed), done.stderr


def read_rows(cli: Cli) -> str:
    with contextlib.closing(sqlite3.connect(cli.folder / "proxy.db")) as database:
        return "".join(database.iterdump())


def test_a_dry_run_prints_what_apply_would_change_and_changes_nothing(cli: Cli) -> None:
    cli.data("tenants", "list")
    before, file = read_rows(cli), cli.folder / "next.yaml"
    plans = {"narrow": {"endpoints": ["fal-ai/llavav15-13b"], "max_tokens": 128}, "new": {"endpoints": [NEXT]}}
    tenants = [{"id": "acme", "plan": "narrow"}, {"id": "globex", "plan": "new"}]
    file.write_text(yaml.safe_dump({"plans": plans, "tenants": tenants, "endpoints": PRICES[:1]}))
    assert cli.data("tenants", "apply", "--dry-run", str(file)).splitlines() == [
        "change plan narrow",
        '    endpoints: - "fal-ai/llava-next"',
        '    endpoints: + "fal-ai/llavav15-13b"',
        "    max_tokens: 64 -> 128",
        "create plan new",
        '    endpoints: + "fal-ai/llava-next"',
        "change tenant acme",
        '    plan: "full" -> "narrow"',
        "create tenant globex",
        '    plan: + "new"',
        f"create endpoint {NEXT}",
        "    price_per_compute_second: + 0.0006",
    ]
    answer = json.loads(cli.data("tenants", "apply", "--dry-run", "--json", str(file)))
    assert (answer["dry_run"], answer["changed"], len(answer["changes"])) == (True, True, 5)
    assert answer["changes"][2] == {
        "action": "change",
        "kind": "tenant",
        "id": "acme",
        "fields": [{"field": "plan", "from": "full", "to": "narrow"}],
    }
    assert read_rows(cli) == before
    assert json.loads(cli.data("tenants", "apply", "--json", str(file))) == {"changed": True}
    assert cli.data("tenants", "apply", "--dry-run", str(file)) == "unchanged"
    answer = json.loads(cli.data("tenants", "apply", "--dry-run", "--json", str(file)))
    assert answer == {"dry_run": True, "changed": False, "changes": []}


def test_a_dry_run_refuses_what_apply_refuses(cli: Cli) -> None:
    cli.data("tenants", "list")
    file = cli.folder / "wrong.yaml"
    file.write_text(yaml.safe_dump({"plans": {"full": {"endpoints": ["fal-ai/flux/dev"]}}, "tenant": []}))
    done = cli.run("tenants", "apply", "--dry-run", str(file))
    assert (done.code, done.stdout, done.stderr) == (1, "", cli.run("tenants", "apply", str(file)).stderr)
    assert "fal-ai/flux/dev is not in the catalogue" in done.stderr


def test_a_dry_run_neither_makes_nor_migrates_a_database(cli: Cli) -> None:
    file = cli.folder / "plans.yaml"
    done = cli.run("tenants", "apply", "--dry-run", str(file))
    assert (done.code, done.stdout) == (1, "") and "there is no database yet" in done.stderr
    assert not (cli.folder / "proxy.db").exists()
    cli.data("migrate")
    done = cli.run("tenants", "apply", "--dry-run", str(file))
    assert done.code == 0 and "the database has no tenants yet" in done.stderr
    assert "create tenant acme" in done.stdout and "INSERT INTO tenants" not in read_rows(cli)
    with contextlib.closing(sqlite3.connect(cli.folder / "proxy.db")) as database:
        database.execute("DROP TABLE alerts")
        database.execute("UPDATE alembic_version SET version_num = '0014'")
        database.commit()
    done = cli.run("tenants", "apply", "--dry-run", str(file))
    assert (done.code, done.stdout) == (1, "") and "run: fal-proxy migrate" in done.stderr
    assert "CREATE TABLE alerts" not in read_rows(cli)


def test_prices_are_applied_and_count_for_later_files(cli: Cli) -> None:
    file = cli.folder / "money.yaml"
    limited = {
        "money": {"endpoints": [NEXT], "quotas": [{"per": "tenant", "unit": "usd", "limit": 5, "window": "day"}]}
    }
    file.write_text(yaml.safe_dump({"plans": limited}))
    done = cli.run("tenants", "apply", str(file))
    assert (done.code, done.stdout, done.stderr.count(NEXT)) == (1, "", 1)
    assert "plans.money.quotas: usd counts nothing for fal-ai/llava-next, which has no price" in done.stderr
    (cli.folder / "prices.yaml").write_text(yaml.safe_dump({"plans": {}, "endpoints": PRICES}))
    assert cli.data("tenants", "apply", str(cli.folder / "prices.yaml")) == "changed"
    assert cli.data("tenants", "apply", str(cli.folder / "prices.yaml")) == "unchanged"
    assert cli.data("tenants", "apply", str(file)) == "changed"


def test_the_schema_of_the_plan_file_accepts_what_the_program_accepts(cli: Cli) -> None:
    schema = jsonschema_rs.validator_for(json.loads(cli.data("tenants", "schema")))
    assert schema.is_valid(PLANS)
    assert not schema.is_valid({**PLANS, "tenant": []})
    assert not schema.is_valid({"plans": {"full": {"endpoints": "fal-ai/llava-next"}}})


# Keys


def test_a_new_key_stands_alone_on_stdout_and_only_its_hash_is_kept(cli: Cli) -> None:
    done = cli.run("keys", "create", "acme", "--name", "backend")
    assert done.code == 0
    assert done.stdout.startswith("fpk_") and done.stdout.count("\n") == 1
    key_id, secret = done.stdout.strip().removeprefix("fpk_").split("_", 1)
    assert key_id in done.stderr and secret not in done.stderr
    with sqlite3.connect(cli.folder / "proxy.db") as database:
        assert secret not in "".join(database.iterdump())
    database.close()


def test_keys_are_listed_without_their_secrets_until_they_are_revoked(cli: Cli) -> None:
    made = json.loads(cli.data("keys", "create", "acme", "--name", "backend", "--json"))
    assert set(made) == {"id", "tenant", "name", "key"}
    listed = cli.data("keys", "list", "acme")
    assert listed.startswith(f"{made['id']}\t") and listed.endswith("\tNone\tbackend")
    (row,) = json.loads(cli.data("keys", "list", "acme", "--json"))
    assert set(row) == {"id", "name", "created_at", "last_used_at"} and row["last_used_at"] is None
    assert cli.data("keys", "list", "small") == ""
    assert cli.data("keys", "revoke", made["id"]) == "revoked"
    assert cli.data("keys", "list", "acme") == ""
    done = cli.run("keys", "revoke", made["id"])
    assert (done.code, done.stdout, done.stderr) == (1, "", f"there is no key {made['id']}\n")


# Sessions


def test_a_minted_session_stands_alone_on_stdout(cli: Cli) -> None:
    done = cli.run("sessions", "mint", "--tenant", "acme", "--subject", "alice")
    token = done.stdout.strip()
    assert done.code == 0 and done.stdout == f"{token}\n" and len(token) > 40
    assert done.stderr.startswith("session ") and " for alice of acme, until 20" in done.stderr
    assert token not in done.stderr


def test_a_session_is_minted_with_what_narrows_it(cli: Cli) -> None:
    file = cli.folder / "prices.yaml"
    file.write_text(yaml.safe_dump({"plans": {}, "endpoints": PRICES}))
    assert cli.data("tenants", "apply", str(file)) == "changed"
    own = ["--quota", "requests=3", "--quota", "usd=0.5", "--max-tokens", "9", "--max-prompt-chars", "99"]
    token = cli.run("sessions", "mint", "--tenant", "acme", "--subject", "a", *own, "--tag", "trial").stdout.strip()
    session = Sessions((Secret(SECRET),), SystemClock()).verify(token)
    assert session.quotas == (("requests", 3_000_000), ("usd", 500_000))
    assert (session.ceilings, session.tags) == ((9, 99), ("trial",))


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["--tenant", "acmee", "--subject", "alice"], "there is no tenant acmee"),
        (["--tenant", "acme", "--subject", " alice"], "--subject: must be"),
        (["--tenant", "acme", "--subject", ""], "--subject: must be"),
        (["--tenant", "acme", "--subject", "a/../.."], "--subject: must not be '.' or '..'"),
        (["--tenant", "acme", "--subject", "guest-0123456789abcdef"], "--subject: 'guest-' and 16"),
        (["--tenant", "small", "--subject", "a", "--endpoint", "fal-ai/llavav15-13b"], "--endpoint: the tenant's plan"),
        (["--tenant", "acme", "--subject", "a", "--quota", "requests"], "--quota: give a unit and a number, such as"),
        (["--tenant", "acme", "--subject", "a", "--quota", "requests=nan"], "--quota: Input should be"),
        (["--tenant", "acme", "--subject", "a", "--quota", "calls=1"], "--quota: Input should be 'requests'"),
        (
            ["--tenant", "acme", "--subject", "a", "--quota", "usd=1"],
            "quotas: usd counts nothing for fal-ai/llava-next, fal",
        ),
        (["--tenant", "acme", "--subject", "a", "--max-tokens", "0"], "--max-tokens: Input should be"),
        (["--tenant", "acme", "--subject", "a", "--max-prompt-chars", "-1"], "--max-prompt-chars: Input should be"),
        (["--tenant", "acme", "--subject", "a", "--tag", "two words"], "--tag: String should match"),
    ],
)
def test_a_session_with_wrong_options_is_refused(cli: Cli, arguments: list[str], problem: str) -> None:
    done = cli.run("sessions", "mint", *arguments)
    assert (done.code, done.stdout) == (1, "") and done.stderr.startswith(problem)


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (["keys", "create", "acme", "--name", "a" * 201], "--name: must be 1 to 200"),
        (["keys", "create", "acme", "--name", "a\nb"], "--name: must be 1 to 200"),
        (["keys", "create", "acme", "--name", b"a\xffb"], "--name: must be 1 to 200"),
        (["keys", "revoke", "no key\n"], "there is no key"),
        (["sessions", "revoke", "--tenant", "acme", "--subject", b"\xff"], "--subject: must be 1 to 200"),
        (["sessions", "revoke", "a b"], "that is not the id of a session"),
        (["sessions", "mint", "--tenant", "acme", "--subject", b"a\xffb"], "--subject: must be 1 to 200"),
        (["tenants", "forget", "acme", b"a\xffb"], "SUBJECT: must be 1 to 200"),
        (["tenants", "forget", "absent", "alice"], "there is no tenant absent"),
        *(([*command, "--subject", b"\xff"], "--subject: must be 1 to 200") for command in OF_ONE_USER),
        (["jobs", "list", "--tenant", "acme", "--status", "done"], "--status: must be one of open, over"),
        (["usage", "--tenant", "acme", "--from", "20260101"], "from: must be a day"),
        ([*OVERRIDE, '{"max_tokens": 64, "max_tokens": 900}'], "--limits: the key 'max_tokens' stands in it twice"),
        ([*OVERRIDE, '{"max_tokens": NaN}'], "--limits: must be JSON"),
        (["usage", "--tenant", "acme", "--to", "9" * 5000], "to: must be a day"),
    ],
)
def test_a_malformed_name_id_or_day_is_refused(cli: Cli, arguments: list[str | bytes], problem: str) -> None:
    done = cli.run(*map(os.fsdecode, arguments))
    assert (done.code, done.stdout) == (1, "") and done.stderr.startswith(problem)


def test_minting_needs_the_secret_and_nothing_else_of_the_server(cli: Cli) -> None:
    assert "FAL_KEY" not in cli.environ
    done = cli.run("sessions", "mint", "--tenant", "acme", "--subject", "alice", PROXY_SESSION_SECRETS="")
    assert (done.code, done.stdout) == (1, "") and done.stderr.startswith("PROXY_SESSION_SECRETS: is not set")


@pytest.mark.parametrize(
    "arguments",
    [
        ["sessions", "mint", "--tenant", "acme"],
        ["sessions", "mint", "--tenant", "acme", "--subject", "a", "--ttl", "0"],
        ["sessions", "mint", "--tenant", "acme", "--subject", "a", "--ttl", "soon"],
        ["sessions", "revoke"],
        ["sessions", "revoke", "an-id", "--tenant", "acme", "--subject", "a"],
        ["sessions", "revoke", "--tenant", "acme"],
        ["sessions", "revoke", "--subject", "a"],
        ["keys", "create"],
        ["usage", "--csv", "--json"],
        ["usage", "--subject", "alice"],
        ["statement", "acme", "2026-01", "--csv", "--json"],
        ["tenants", "apply"],
        ["tenants", "lst"],
    ],
    ids=" ".join,
)
def test_bad_usage_exits_with_2_and_prints_no_data(cli: Cli, arguments: list[str]) -> None:
    done = cli.run(*arguments)
    assert (done.code, done.stdout) == (2, "") and done.stderr


@pytest.mark.parametrize(
    "arguments", [["keys", "list", "acme"], ["audit", "export"], ["tenants", "schema"]], ids=" ".join
)
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_output_that_cannot_be_written_is_a_plain_refusal(cli: Cli, arguments: list[str], unbuffered: str) -> None:
    cli.data("keys", "create", "acme")
    environ = {**cli.environ, "PYTHONUNBUFFERED": unbuffered}
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PROXY, *arguments], env=environ, cwd=cli.folder, stdout=full, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (1, b"the output cannot be written (No space left on device)\n")


def test_a_reader_that_has_seen_enough_is_no_trouble(cli: Cli) -> None:
    """As `| head -1` is."""
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run([*PROXY, "tenants", "schema"], env=cli.environ, stdout=write, stderr=subprocess.PIPE)
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def without(number: int, *arguments: str, cli: Cli) -> subprocess.CompletedProcess[bytes]:
    """Run a command with one of its standard streams closed."""
    closing = [sys.executable, "-c", f"import os, sys; os.close({number}); os.execv(sys.argv[1], sys.argv[1:])"]
    return subprocess.run([*closing, *PROXY, *arguments], env=cli.environ, cwd=cli.folder, capture_output=True)


def test_a_command_whose_output_is_closed_does_nothing(cli: Cli) -> None:
    """A key that it creates could not be shown again."""
    cli.data("tenants", "list")
    for arguments in (["keys", "create", "acme"], ["tenants", "list"], ["keys", "list", "acme", "--json"]):
        done = without(1, *arguments, cli=cli)
        said = b"the output cannot be written (stdout is closed)\n"
        assert (done.returncode, done.stdout, done.stderr) == (1, b"", said)
    assert cli.data("keys", "list", "acme") == ""


def test_messages_do_not_go_to_the_output_if_stderr_is_closed(cli: Cli) -> None:
    done = without(2, "keys", "create", "acme", cli=cli)
    (key,) = done.stdout.splitlines()
    assert (done.returncode, done.stderr) == (0, b"") and key.isascii() and b" " not in key
    assert without(2, "tenants", "show", "nobodys", cli=cli).stdout == b""
    assert without(0, "tenants", "list", cli=cli).returncode == 0


def test_a_message_shows_what_a_terminal_would_obey(cli: Cli) -> None:
    done = cli.run("tenants", "show", "\x1b[2Jred\u202e" + "x" * 1000)
    assert done.stderr.startswith("there is no tenant \\x1b[2Jred\\u202exxx") and len(done.stderr) < 300


# The database


def test_migrate_prints_the_revision_and_can_be_repeated(cli: Cli) -> None:
    assert cli.data("migrate") == cli.data("migrate") == migrate.newest()


@pytest.mark.parametrize("command", ["tenants list", "migrate", "serve"])
def test_a_database_that_cannot_be_used_is_a_plain_refusal(cli: Cli, command: str) -> None:
    """A server does not start for it either: waiting would not help."""
    (cli.folder / "notes.txt").write_text("no database " * 100)
    for url, reason in (
        (f"sqlite:///{cli.folder / 'notes.txt'}", "is not a SQLite database: restore a backup"),
        ("sqlite:////gone/proxy.db", "has no folder: make the folder"),
    ):
        done = cli.run(*command.split(), PROXY_DATABASE_URL=url, **SERVABLE)
        assert (done.code, done.stdout) == (1, ""), done
        assert reason in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr


@pytest.mark.parametrize("folder", ["/proc", "/sys"])
def test_a_folder_that_takes_no_files_is_no_place_for_charges_that_wait(cli: Cli, folder: str) -> None:
    """Not even from the system's administrator."""
    done = cli.run("serve", PROXY_STATE_DIR=folder, **SERVABLE)
    assert (done.code, done.stdout) == (1, "")
    assert done.stderr.startswith("PROXY_STATE_DIR: takes no files (")
    assert done.stderr.endswith("let the user of this process write to it\n")


# Beside a running server


def test_a_session_from_the_command_line_opens_the_running_proxy_until_it_is_revoked(beside: Running) -> None:
    minted = json.loads(
        beside.cli.data("sessions", "mint", "--tenant", "acme", "--subject", "alice", "--ttl", "600", "--json")
    )
    assert set(minted) == {"id", "subject", "expires_at", "token"}
    body = {"image_url": "data:image/png;base64,AAAA", "prompt": "?"}
    # The sandbox looked at the picture: the call went all the way.
    assert call(beside.server.url, minted["token"], "/fal/run/fal-ai/llava-next", json=body).status_code == 422
    assert len(beside.sandbox.requests()) == 1
    assert beside.cli.data("sessions", "revoke", minted["id"]) == "revoked"
    wait_until(
        lambda: call(beside.server.url, minted["token"]).json().get("error_type") == "session_revoked",
        "the revocation did not reach the running proxy",
    )


def test_a_narrowed_session_is_clamped_to_the_plan(beside: Running) -> None:
    token = beside.cli.data(
        "sessions", "mint", "--tenant", "acme", "--subject", "bob", "--endpoint", "fal-ai/llava-next", "--ttl", "99999"
    )
    facts = call(beside.server.url, token).json()
    assert (facts["tenant"], facts["subject"], facts["endpoints"]) == ("acme", "bob", ["fal-ai/llava-next"])
    done = beside.cli.run("sessions", "mint", "--tenant", "small", "--subject", "x", "--ttl", "99999", "--json")
    assert done.stderr.strip().endswith(json.loads(done.stdout)["expires_at"])


def test_all_sessions_of_one_subject_can_be_revoked(beside: Running) -> None:
    first, second, other = (
        beside.cli.data("sessions", "mint", "--tenant", "acme", "--subject", subject)
        for subject in ("carol", "carol", "dave")
    )
    assert {call(beside.server.url, token).status_code for token in (first, second, other)} == {200}
    assert beside.cli.data("sessions", "revoke", "--tenant", "acme", "--subject", "carol") == "revoked"
    wait_until(lambda: call(beside.server.url, first).status_code == 401, "the revocation did not arrive")
    assert call(beside.server.url, second).json()["error_type"] == "session_revoked"
    assert call(beside.server.url, other).status_code == 200
    again = beside.cli.data("sessions", "mint", "--tenant", "acme", "--subject", "carol")
    assert call(beside.server.url, again).status_code == 200


def test_a_key_works_in_the_running_proxy_until_it_is_revoked(beside: Running) -> None:
    made = json.loads(beside.cli.data("keys", "create", "acme", "--json"))
    wait_until(lambda: call(beside.server.url, made["key"]).status_code == 200, "the key did not arrive")
    minted = call(beside.server.url, made["key"], "/v1/sessions", json={"subject": "erin"})
    assert minted.status_code == 201
    assert call(beside.server.url, minted.json()["token"]).json()["subject"] == "erin"
    wait_until(
        lambda: json.loads(beside.cli.data("keys", "list", "acme", "--json"))[0]["last_used_at"],
        "the use of the key was not noted",
    )
    beside.cli.data("keys", "revoke", made["id"])
    wait_until(lambda: call(beside.server.url, made["key"]).status_code == 401, "the revocation did not arrive")
    # What was minted with it counts on: it belongs to the subject.
    assert call(beside.server.url, minted.json()["token"]).status_code == 200


def test_a_change_of_the_plans_takes_effect_in_the_running_proxy(beside: Running) -> None:
    token = beside.cli.data("sessions", "mint", "--tenant", "acme", "--subject", "frank")
    file = beside.cli.folder / "wider.yaml"
    every = ["fal-ai/llava-next", "fal-ai/llavav15-13b", "fal-ai/llava-llama3-8b-v11"]
    file.write_text(yaml.safe_dump({**PLANS, "plans": {**PLANS["plans"], "full": {"endpoints": every}}}))
    assert len(call(beside.server.url, token).json()["endpoints"]) == 2
    assert beside.cli.data("tenants", "apply", str(file)) == "changed"
    wait_until(lambda: len(call(beside.server.url, token).json()["endpoints"]) == 3, "the change did not arrive")


def test_no_secret_was_printed(beside: Running) -> None:
    assert SECRET not in beside.server.stdout + beside.server.stderr
    assert "sandbox-key-secret" not in beside.server.stdout + beside.server.stderr
