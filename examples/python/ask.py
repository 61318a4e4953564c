"""Ask LLaVA about a picture, through fal-proxy: python ask.py cat.png "What is in this picture?" """

import os
import sys
from urllib.parse import urlsplit

if len(sys.argv) < 2 or not {"FAL_PROXY_URL", "FAL_PROXY_SESSION"} <= set(os.environ):
    sys.exit("usage: FAL_PROXY_URL=https://… FAL_PROXY_SESSION=… python ask.py PICTURE [QUESTION]")

# The client knows no proxy, only hosts, and reads them when it is imported. It speaks TLS only.
host = urlsplit(os.environ["FAL_PROXY_URL"]).netloc
os.environ["FAL_RUN_HOST"] = f"{host}/fal/run"
os.environ["FAL_QUEUE_RUN_HOST"] = f"{host}/fal/queue"
os.environ["FAL_KEY"] = os.environ["FAL_PROXY_SESSION"]

import fal_client  # noqa: E402


def tell(update: fal_client.Status) -> None:
    position = f" {update.position}" if isinstance(update, fal_client.Queued) else ""
    print(f"{type(update).__name__}{position}", file=sys.stderr)


question = sys.argv[2] if len(sys.argv) > 2 else "What is in this picture?"
try:
    result = fal_client.subscribe(
        "fal-ai/llava-next",
        # The picture goes inside the request; docs/clients.md tells how to upload larger ones.
        {"image_url": fal_client.encode_file(sys.argv[1]), "prompt": question},
        on_queue_update=tell,
    )
except fal_client.FalClientHTTPError as error:
    sys.exit(f"{error.message} ({error.error_type})")
print(result["output"])
