"""What a worker says to its supervisor when it is asked."""

from __future__ import annotations

from socket import socket

import uvicorn

from proxy.server.worker_process import Worker

SECONDS = 120.0


class StartingWorker(Worker):
    """Is still starting when it is asked for the first time, and serves from then on."""

    def target(self, sockets: list[socket] | None = None) -> None:
        has_started = False
        while True:
            self.child_conn.recv()
            self.child_conn.send(has_started)
            has_started = True


def test_an_answer_from_before_a_worker_served_does_not_count() -> None:
    worker = StartingWorker(uvicorn.Config("no:app"), [], None, None)
    worker.start()
    try:
        # This asks, and does not wait.
        assert worker.is_well(SECONDS) and worker.served_since is None
        assert worker.parent_conn.poll(SECONDS)
        assert worker.is_serving(SECONDS)
    finally:
        worker.bury()
