"""What a developer sees first: where everything is, and lines that work when pasted."""

from __future__ import annotations

import base64
import shlex
import shutil
import struct
import sys
import zlib
from dataclasses import dataclass, field
from pathlib import Path

from proxy.settings import Settings


@dataclass(frozen=True)
class Trial:
    """Who a developer tries things out as.

    Attributes:
        made_admin_token: opens the console, unless the settings have a token of the developer's own.
    """

    tenant: str
    session: str = field(repr=False)
    tenant_key: str = field(repr=False)
    made_admin_token: str = field(repr=False)


def introduce(trial: Trial, settings: Settings, upstream: str, notes: str = "") -> str:
    """Write the introduction; `notes` are lines that each end with a newline."""
    url = settings.server.public_url
    body = f'{{"image_url":"{_sample_picture()}","prompt":"Which colour is this?"}}'
    return f"""
fal-proxy is running, in front of {upstream}.

  page         {url}/
  reference    {url}/docs
{_console_lines(trial, settings)}
  session      {trial.session}
  tenant key   {trial.tenant_key}

  curl -s {url}/fal/run/fal-ai/llava-next \\
    -H 'Authorization: Bearer {trial.session}' \\
    -H 'Content-Type: application/json' \\
    -d '{body}'

  In your own app, your backend gets a session for each user with the tenant key:

    curl -s {url}/v1/sessions \\
      -H 'Authorization: Bearer {trial.tenant_key}' \\
      -H 'Content-Type: application/json' \\
      -d '{{"subject":"alice"}}'

  Another key, from any terminal while this runs: {_command()} keys create {trial.tenant}
{notes}
Ctrl-C stops it.
"""


def _console_lines(trial: Trial, settings: Settings) -> str:
    """Write where an operator signs in, and with which token. The developer's own token is not repeated."""
    if not settings.server.console:
        return ""
    own = settings.sessions.admin_token
    token = trial.made_admin_token if own and own.reveal() == trial.made_admin_token else "yours (PROXY_ADMIN_TOKEN)"
    return f"  console      {settings.server.operators_url}/console\n  admin token  {token}\n"


def _command() -> str:
    """Write the command of this program so that a shell finds it from any folder."""
    beside = Path(sys.executable).with_name("fal-proxy")
    if shutil.which("fal-proxy"):
        return "fal-proxy"
    return shlex.quote(str(beside)) if beside.exists() else f"{shlex.quote(sys.executable)} -m proxy"


def _sample_picture() -> str:
    """Draw a small orange square, as a data URI: a PNG is three chunks (W3C PNG, section 5.6)."""
    side, orange = 16, b"\xf0\x80\x20"
    rows = (b"\0" + orange * side) * side
    header = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunks = [(b"IHDR", header), (b"IDAT", zlib.compress(rows, 9)), (b"IEND", b"")]
    png = b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data)) for name, data in chunks
    )
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
