"""Database URLs in the form in which providers hand them out, on a real PostgreSQL."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from proxy.libpq import parse
from tests.server.commands import PROXY, SERVABLE
from tests.support.databases import PostgresDatabases
from tests.support.postgres import UNPRIVILEGED, Postgres, running_postgres


@pytest.mark.tools
@pytest.mark.parametrize(
    "parameters",
    [
        "sslmode=prefer&channel_binding=prefer",
        "sslmode=disable&application_name=fal-proxy&connect_timeout=5",
        "ssl=disable&options=-c%20statement_timeout%3D5000&keepalives=1",
        "target_session_attrs=read-write&client_encoding=utf8",
    ],
)
def test_a_url_with_libpq_parameters_is_checked_and_migrated(
    postgres_databases: PostgresDatabases, tmp_path: Path, parameters: str
) -> None:
    url = postgres_databases.empty().replace("postgresql://", "postgres://") + f"?{parameters}"
    environ = {**SERVABLE, "PROXY_DATABASE_URL": url}
    for command in ("check-config", "migrate"):
        done = subprocess.run([*PROXY, command], env=environ, cwd=tmp_path, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr


@pytest.mark.tools
def test_the_server_sees_the_application_name_and_the_options(
    postgres_databases: PostgresDatabases, postgres: Postgres, tmp_path: Path
) -> None:
    """The parameters do not only pass: they hold."""
    url = postgres_databases.empty()
    environ = {**SERVABLE, "PROXY_DATABASE_URL": f"{url}?options=-c%20default_transaction_read_only%3Don"}
    done = subprocess.run([*PROXY, "migrate"], env=environ, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode != 0
    assert postgres.ask(url.rpartition("/")[2], "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'") == "0"


def test_unknown_parameters_are_left_out_and_synonyms_are_translated() -> None:
    text = "postgres://user:p%40ss@db.example:6543/app?ssl=require&channel_binding=require&connect_timeout=7&options=-c%20a%3Db"
    url, timeout, is_pooled = parse(text)
    assert (
        url == "postgresql://user:p%40ss@db.example:6543/app?sslmode=require&options=-c+a%3Db"
        and timeout == 7
        and not is_pooled
    )


def test_a_connect_timeout_of_zero_leaves_the_default() -> None:
    assert parse("postgresql://db/app?connect_timeout=0").connect_timeout is None


#: What must not be shown of a URL that is wrong.
PASSWORD = "pass-word"


@pytest.mark.parametrize(
    "url",
    [
        # The placeholder of Supabase has brackets.
        f"postgresql://postgres:[{PASSWORD}]@db.example/app",
        f"postgresql://u:[{PASSWORD}@db.example/app",
        f"postgresql://u:12/{PASSWORD}@db.example/app",
        f"postgresql://u:12?{PASSWORD}@db.example/app",
        f"postgresql://u:12?{PASSWORD}=1@db.example/app",
        f"postgresql://u:12?sslmode={PASSWORD}@db.example/app",
        f"postgresql://u:12?port={PASSWORD}@db.example/app",
        f"postgresql://u:12?connect_timeout={PASSWORD}@db.example/app",
        f"postgresql://u:x@{PASSWORD}@db.example/app",
        f"postgresql://u:{PASSWORD}@x@db.example/app",
        f"postgresql://u:x#{PASSWORD}@db.example/app",
        f"postgresql://u:x/{PASSWORD}@db.example/app",
        f"postgresql://u:{PASSWORD}%00@db.example/app",
    ],
)
def test_no_refusal_shows_a_part_of_a_password_that_is_not_encoded(url: str) -> None:
    with pytest.raises(ValueError) as caught:
        parse(url)
    assert PASSWORD not in str(caught.value)
    assert "percent-encode" in str(caught.value) or "has a" in str(caught.value)


@pytest.mark.parametrize(
    ("query", "problem"),
    [
        ("sslmode=require&sslmode=disable", "has sslmode twice"),
        ("ssl=true&sslmode=disable", "has sslmode twice"),
        ("connect_timeout=1&connect_timeout=2", "has connect_timeout twice"),
        ("port=x", "has a port"),
        ("host=a&port=70000", "has a port"),
        ("host=a..b", "has a host"),
        (f"host={'a' * 64}.example", "has a host"),
        ("sslnegotiation=fast", "has a value of sslnegotiation"),
        ("gsslib=other", "has a value of gsslib"),
        ("target_session_attrs=standby", "has a value of target_session_attrs"),
        ("target_session_attrs=prefer-standby", "has a value of target_session_attrs"),
        ("target_session_attrs=read-only", "has a value of target_session_attrs"),
        ("sslmode=require&sslrootcert=system", "needs sslmode=verify-full"),
        ("sslrootcert=system", "needs sslmode=verify-full"),
        ("sslcert=system", "there is no such file"),
        (f"sslrootcert={__file__}", "has a file in sslrootcert"),
        (f"sslcrl={__file__}", "has a file in sslcrl"),
        (f"sslcert={__file__}&sslkey={__file__}", "has a sslcert and a sslkey"),
    ],
)
def test_a_parameter_that_no_connection_can_be_made_with_is_named(query: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse(f"postgresql:///app?{query}")


@pytest.mark.parametrize(
    "host", ["db..example", f"{'a' * 64}.example", "%E0%A4%A", "db example", "b\u00fc cher.example"]
)
def test_a_host_that_no_resolver_takes_is_named(host: str) -> None:
    with pytest.raises(ValueError, match=r"has a (host|port)|brackets"):
        parse(f"postgresql://u@{host}/app")


@pytest.mark.parametrize(
    "host", ["", "db", "db.", "[::1]:5432", "%2Fvar%2Frun%2Fpostgresql", "b\u00fccher.example", "a:1,b:2", "127.1"]
)
def test_a_host_in_another_spelling_is_taken(host: str) -> None:
    assert f"@{host}/" in parse(f"postgresql://u@{host}/app").url


@pytest.mark.parametrize(
    ("given", "mode"),
    [("true", "require"), ("1", "require"), ("false", "disable"), ("0", "disable"), ("prefer", "prefer")],
)
def test_the_word_of_other_languages_for_tls_is_translated(given: str, mode: str) -> None:
    assert parse(f"postgresql://db/app?ssl={given}").url == f"postgresql://db/app?sslmode={mode}"


def test_a_user_with_an_at_sign_may_stand_in_the_query() -> None:
    assert "user=app%40server" in parse("postgresql://db:5432/app?user=app%40server").url
    assert "user=app%40server" in parse("postgresql://db:5432/app?user=app@server").url


@pytest.mark.parametrize("mode", ["verify-ca", "verify-full"])
def test_a_server_that_is_to_be_verified_needs_an_authority(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with pytest.raises(ValueError, match="no authority; add sslrootcert=system"):
        parse(f"postgresql://db/app?sslmode={mode}")
    own = tmp_path / ".postgresql" / "root.crt"
    own.parent.mkdir()
    trustme.CA().cert_pem.write_to_path(own)
    assert parse(f"postgresql://db/app?sslmode={mode}").url == f"postgresql://db/app?sslmode={mode}"


def serve_tls(server: Postgres, folder: Path, authority: trustme.CA) -> None:
    """Let a running server encrypt, with a certificate for 127.0.0.1."""
    issued, chain, key = authority.issue_cert("127.0.0.1"), folder / "chain.pem", folder / "key.pem"
    chain.write_bytes(b"".join(blob.bytes() for blob in issued.cert_chain_pems))
    issued.private_key_pem.write_to_path(key)
    key.chmod(0o600)
    folder.chmod(0o755)
    for path in (chain, key):
        if UNPRIVILEGED:
            shutil.chown(path, UNPRIVILEGED, UNPRIVILEGED)
    for name, value in (("ssl_cert_file", chain), ("ssl_key_file", key), ("ssl", "on")):
        server.ask("postgres", f"ALTER SYSTEM SET {name} = '{value}'")
    server.stop()
    server.start()


@pytest.mark.tools
def test_the_authorities_of_the_system_verify_a_server(tmp_path: Path) -> None:
    """`sslrootcert=system`, as providers have it in their URLs: libpq knows the word, and the driver does not."""
    authority = trustme.CA()
    trusted, other = tmp_path / "trusted.pem", tmp_path / "other.pem"
    authority.cert_pem.write_to_path(trusted)
    trustme.CA().cert_pem.write_to_path(other)
    # Not in the folder of the test: the server's user cannot go there.
    with tempfile.TemporaryDirectory() as folder, running_postgres() as server:
        serve_tls(server, Path(folder), authority)
        url = f"{server.url(server.create_database())}?sslmode=verify-full&sslrootcert=system"
        done = {name: migrate_in_time(url, tmp_path, SSL_CERT_FILE=str(name)) for name in (trusted, other)}
    assert done[trusted].returncode == 0, done[trusted].stderr
    assert done[other].returncode == 1 and "correct the host, sslmode or sslrootcert" in done[other].stderr


def migrate_in_time(url: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    """Migrate, and again while a busy machine keeps the server from answering in time."""
    for _ in range(10):
        done = migrate(url, folder, **more)
        if "does not answer" not in done.stderr:
            break
    return done


def migrate(url: str, folder: Path, **more: str) -> subprocess.CompletedProcess[str]:
    environ = {**SERVABLE, "PROXY_DATABASE_URL": url, **more}
    return subprocess.run([*PROXY, "migrate"], env=environ, cwd=folder, capture_output=True, text=True)


@pytest.mark.tools
@pytest.mark.parametrize(
    ("of_url", "advice"),
    [
        (lambda url: url.replace("//proxy@", "//stranger@"), "refuses the user or the password"),
        (lambda url: f"{url}-other", "does not exist: create it"),
        (lambda url: f"{url}?sslmode=require", "takes no TLS"),
        (lambda url: f"{url}?options=-c%20no_such_setting%3D1", "does not take the options"),
        (lambda url: f"{url}?options=-c%20search_path%3Dnowhere", "has no schema of the search_path"),
        (lambda url: url.replace("127.0.0.1", "no-such-host.invalid"), "has no address: correct the host"),
        (lambda url: f"postgresql://127.0.0.1:1/{url.rpartition('/')[2]}", "is not there: correct the host and port"),
        (lambda url: "postgresql:///proxy?host=/no/such/folder", "has no socket there"),
    ],
)
def test_a_database_that_takes_no_connection_is_reported_with_what_to_do(
    postgres_databases: PostgresDatabases, tmp_path: Path, of_url: Callable[[str], str], advice: str
) -> None:
    done = migrate_in_time(of_url(postgres_databases.empty()), tmp_path)
    assert done.returncode == 1
    assert advice in done.stderr and "Traceback" not in done.stderr, done.stderr
