"""The fronts that production has before this server: nginx, and a reverse proxy of Go's standard library."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from tests.support.programs import Program
from tests.support.servers import free_port

_FOLDER = Path(__file__).parent
#: The usual lines for WebSockets, and connections to the server that all callers share.
_NGINX = """
daemon off; master_process off; pid {folder}/pid; error_log {folder}/error.log; events {{ worker_connections 256; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  upstream server {{ server 127.0.0.1:{server}; keepalive 1; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{
      proxy_pass http://server; proxy_http_version 1.1; proxy_set_header Host $host;
      proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade;
      proxy_request_buffering off; proxy_next_upstream off;
    }}
  }}
}}
"""


class Front(Program):
    """A front on a port of its own."""

    def is_ready(self) -> bool:
        with closing(socket.socket()) as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def nginx(server_port: int, folder: Path) -> Iterator[Front]:
    """nginx in front of a server."""
    port, settings = free_port(), folder / "nginx.conf"
    settings.write_text(_NGINX.format(folder=folder, server=server_port, port=port))
    yield from _run(Front(["nginx", "-c", str(settings), "-p", str(folder)], port, folder / "log"))


@contextmanager
def go_proxy(server_port: int, folder: Path) -> Iterator[Front]:
    """Go's reverse proxy in front of a server."""
    program = folder / "goproxy"
    subprocess.run(["go", "build", "-o", str(program), "."], cwd=_FOLDER / "goproxy", check=True, timeout=300)
    port = free_port()
    yield from _run(Front([str(program), str(port), f"http://127.0.0.1:{server_port}"], port, folder / "log"))


def _run(front: Front) -> Iterator[Front]:
    front.start()
    try:
        yield front
    finally:
        front.stop()
