"""`/metrics` of several workers is one answer: what all of them counted, also those that have died."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import httpx
import pytest
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families

from proxy.server.metrics_folder import metrics_folder
from proxy.telemetry.worker_metrics import WorkerMetrics, retire
from tests.server.commands import PLAINLY, Commands, Server
from tests.server.conftest import cli_in
from tests.server.test_workers import two_workers, workers_of
from tests.support.limited import ADMIN_TOKEN
from tests.support.redis import Redis
from tests.support.sandbox import SandboxControl
from tests.support.servers import free_port
from tests.support.waiting import wait_until

ANSWERED = ("fal_proxy_requests_total", (("status", "404"), ("surface", "none")))


@dataclass
class Scraped:
    server: Server
    ops_port: int
    folder: Path

    def ask(self, times: int) -> None:
        """Requests over as many connections, so that all workers get some."""
        for _ in range(times):
            assert httpx.get(f"{self.server.url}/no-such-page", **PLAINLY).status_code == 404

    def scrape(self) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
        answer = httpx.get(f"http://127.0.0.1:{self.ops_port}/metrics", **PLAINLY).raise_for_status()
        assert answer.headers["content-type"].startswith("text/plain")
        return samples_of(answer.text)

    @contextlib.contextmanager
    def sign_in(self) -> Iterator[httpx.Client]:
        """An operator at the console."""
        url = f"http://127.0.0.1:{self.ops_port}"
        headers = {"origin": url, "connection": "close"}
        with httpx.Client(base_url=url, headers=headers, **PLAINLY) as operator:
            form = re.search(r'name="csrf" value="([0-9a-f]+)"', operator.get("/console/sign-in").text)
            assert form
            answer = operator.post("/console/sign-in", data={"csrf": form[1], "token": ADMIN_TOKEN})
            assert answer.status_code == 303, answer.text
            yield operator

    def list_shown(self, operator: httpx.Client) -> set[int]:
        """How many requests without a page were refused, as the console says over some connections."""
        pages = [operator.get("/console").raise_for_status().text for _ in range(6)]
        return {int(re.findall(r"<code>not_found</code></th><td[^>]*>(\d+)<", page)[0]) for page in pages}


def samples_of(text: str) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    samples = [one for family in text_string_to_metric_families(text) for one in family.samples]
    found = {(one.name, tuple(sorted(one.labels.items()))): one.value for one in samples}
    assert len(found) == len(samples), "a sample is there twice"
    return found


@pytest.fixture(scope="module")
def scraped(
    shared_sandbox: SandboxControl,
    commands: Commands,
    shared_redis: Redis,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Scraped]:
    folder, port = tmp_path_factory.mktemp("metrics"), free_port()
    (temporary := folder / "tmp").mkdir()
    more = {"PROXY_OPS_PORT": str(port), "TMPDIR": str(temporary), "PROXY_ADMIN_TOKEN": ADMIN_TOKEN}
    with two_workers(shared_sandbox, cli_in(folder, commands), shared_redis, live_at="/livez", **more) as server:
        yield Scraped(server, port, temporary)


@pytest.mark.tools
@pytest.mark.slow
class TestTwoWorkers:
    def test_each_scrape_counts_all_requests(self, scraped: Scraped) -> None:
        before = scraped.scrape().get(ANSWERED, 0)
        scraped.ask(40)
        assert [scraped.scrape()[ANSWERED] - before for _ in range(12)] == [40] * 12
        seconds = ("fal_proxy_request_seconds_bucket", (("le", "+Inf"), ("surface", "none")))
        assert scraped.scrape()[seconds] == before + 40

    def test_gauges_are_those_of_all_workers(self, scraped: Scraped) -> None:
        clients = [httpx.Client(base_url=scraped.server.url, **PLAINLY) for _ in range(12)]
        for client in clients:
            client.get("/livez")
        found = {scraped.scrape()["fal_proxy_connections", ()] for _ in range(12)}
        for client in clients:
            client.close()
        assert found == {12}

    def test_the_console_shows_the_refusals_of_all_workers(self, scraped: Scraped) -> None:
        scraped.ask(40)
        refused = int(scraped.scrape()["fal_proxy_refusals_total", (("error_type", "not_found"),)])
        with scraped.sign_in() as operator:
            # Each connection may lead to the other worker, whose figures are a moment old.
            wait_until(lambda: scraped.list_shown(operator) == {refused}, "a worker shows its own alone")

    def test_what_a_killed_worker_counted_stays(self, scraped: Scraped) -> None:
        scraped.ask(40)
        seen = scraped.scrape()[ANSWERED]
        first, _ = workers_of(scraped.server)
        os.kill(first, signal.SIGKILL)
        # Also while it is being replaced.
        totals = []

        def is_replaced() -> bool:
            totals.append(scraped.scrape()[ANSWERED])
            return len(workers_of(scraped.server)) == 2 and first not in workers_of(scraped.server)

        wait_until(is_replaced, "nothing takes its place")
        assert set(totals) == {seen}
        assert not list(scraped.folder.glob(f"*/{first}-*")), "the files of the dead pile up"

    def test_a_worker_that_hangs_holds_no_scrape_up(self, scraped: Scraped) -> None:
        scraped.ask(40)
        seen = scraped.scrape()[ANSWERED]
        first, _ = workers_of(scraped.server)
        os.kill(first, signal.SIGSTOP)
        try:
            # The kernel chooses the worker of each connection: the first answer is from the worker that runs.
            answers: list[float] = []

            def scrape() -> None:
                with contextlib.suppress(httpx.TransportError):
                    answers.append(scraped.scrape()[ANSWERED])

            threads = [threading.Thread(target=scrape) for _ in range(8)]
            for thread in threads:
                thread.start()
            wait_until(lambda: answers, "no scrape is answered")
        finally:
            # Its supervisor may have been faster.
            with contextlib.suppress(ProcessLookupError):
                os.kill(first, signal.SIGKILL)
        for thread in threads:
            thread.join(180)
        assert set(answers) == {seen}

    def test_the_folder_is_private_and_goes_with_the_server(self, scraped: Scraped) -> None:
        (folder,) = scraped.folder.glob("fal-proxy-*")
        assert folder.stat().st_mode & 0o777 == 0o700
        assert scraped.server.stop(signal.SIGTERM) == 0
        assert not folder.exists()


def registry_of(calls: int, open_now: int) -> CollectorRegistry:
    registry = CollectorRegistry()
    Counter("calls", "Calls.", ["kind"], registry=registry).labels('a "b"').inc(calls)
    Gauge("open", "Open now.", registry=registry).set(open_now)
    Histogram("seconds", "Time.", registry=registry).observe(0.3)
    Gauge("process_start_time_seconds", "Start.", registry=registry).set(open_now)
    Gauge("fal_proxy_build_info", "Build.", registry=registry).set(1)
    return registry


CALLS = ("calls_total", (("kind", 'a "b"'),))


@pytest.mark.tools
def test_workers_start_and_add_up_where_the_name_of_the_folder_is_too_long_for_a_socket(
    shared_sandbox: SandboxControl, commands: Commands, shared_redis: Redis, tmp_path: Path
) -> None:
    (temporary := tmp_path / ("long" * 30)).mkdir()
    more = {"PROXY_OPS_PORT": str(port := free_port()), "TMPDIR": str(temporary)}
    with two_workers(shared_sandbox, cli_in(tmp_path, commands), shared_redis, live_at="/livez", **more) as server:
        scraped = Scraped(server, port, temporary)
        scraped.ask(40)
        assert {scraped.scrape()[ANSWERED] for _ in range(12)} == {40}


def test_the_folder_is_at_the_first_place_that_takes_sockets(tmp_path: Path) -> None:
    (long := tmp_path / ("long" * 30)).mkdir()
    with tempfile.TemporaryDirectory(dir="/tmp") as short:
        with metrics_folder([str(tmp_path / "missing"), str(long), short]) as folder:
            assert folder is not None
            assert folder.parent == Path(short)
            assert not [*long.iterdir(), *folder.iterdir()]
        assert not folder.exists()


def test_no_place_that_takes_sockets_is_no_reason_to_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (long := tmp_path / ("long" * 30)).mkdir()
    with metrics_folder([str(long)]) as folder:
        assert folder is None
    assert "no folder for temporary files: /metrics is that of one worker" in caplog.messages


@pytest.mark.anyio
async def test_a_worker_starts_where_the_folder_is_gone(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    worker = WorkerMetrics(registry_of(3, 0), tmp_path / "gone")
    await worker.start()
    assert "metrics not shared" in caplog.messages
    assert (await samples(worker))[CALLS] == 3
    await worker.close()


@pytest.mark.anyio
async def test_reports_are_added_up_and_outlive_their_workers(tmp_path: Path) -> None:
    workers = [WorkerMetrics(registry_of(1, 2), tmp_path), WorkerMetrics(registry_of(10, 20), tmp_path)]
    for worker in workers:
        await worker.start()
    first, second = workers
    for worker in workers:
        found = samples_of((await worker.render()).decode())
        assert (found[CALLS], found["open", ()], found["seconds_count", ()]) == (11, 22, 2)
        # A sum of these would make no sense.
        assert (found["process_start_time_seconds", ()], found["fal_proxy_build_info", ()]) == (2, 1)
        assert not [name for name, _ in found if name.endswith("_created")]
    await second.close()
    found = samples_of((await first.render()).decode())
    assert (found[CALLS], found["open", ()], found["seconds_count", ()]) == (11, 2, 2)
    await first.close()


async def samples(worker: WorkerMetrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    return samples_of((await worker.render()).decode())


@pytest.mark.anyio
async def test_a_report_that_is_being_moved_counts_once(tmp_path: Path) -> None:
    first, second = WorkerMetrics(registry_of(1, 2), tmp_path), WorkerMetrics(registry_of(10, 20), tmp_path)
    await second.close()
    _retire_halfway(tmp_path)
    assert (await samples(first))[CALLS] == 11


def _retire_halfway(folder: Path) -> None:
    (path,) = folder.glob("*.json")
    text = path.read_bytes()
    retire(folder, int(path.stem.partition("-")[0]))
    assert not path.exists()
    path.write_bytes(text)


@pytest.mark.anyio
async def test_a_full_folder_costs_no_scrape(tmp_path: Path) -> None:
    (folder := tmp_path / "gone").mkdir()
    worker = WorkerMetrics(registry_of(3, 0), folder)
    await anyio.Path(folder).rmdir()
    assert (await samples(worker))[CALLS] == 3
