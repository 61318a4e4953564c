"""Runs one published fal_client as an app would: a JSON question a line in, a JSON answer a line out.

The hosts come from FAL_RUN_HOST and FAL_QUEUE_RUN_HOST, the certificate authority from SSL_CERT_FILE. Those for uploads
are built in; an app sets them after the import.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import fal_client.client

PROXY = f"https://{os.environ['FAL_RUN_HOST'].removesuffix('/run')}"
fal_client.client.REST_URL, fal_client.client.CDN_URL = f"{PROXY}/rest", f"{PROXY}/cdn"


def run(fal, question):
    return fal.run(question["endpoint"], question["input"])


async def run_async(fal, question):
    return await fal.run(question["endpoint"], question["input"])


def submit_status_result(fal, question):
    handle = fal.submit(question["endpoint"], question["input"])
    seen = []
    while not seen or not isinstance(seen[-1], fal_client.Completed):
        seen.append(handle.status(with_logs=True))
        time.sleep(0.05)
    again = fal.status(question["endpoint"], handle.request_id)
    assert isinstance(again, fal_client.Completed)
    return {
        "request_id": handle.request_id,
        "urls": [handle.status_url, handle.response_url, handle.cancel_url],
        "seen": [shown(status) for status in seen],
        "result": handle.get(),
        "result_by_id": fal.result(question["endpoint"], handle.request_id),
    }


async def submit_status_result_async(fal, question):
    handle = await fal.submit(question["endpoint"], question["input"])
    seen = [status async for status in handle.iter_events(with_logs=True, interval=0.05)]
    return {
        "request_id": handle.request_id,
        "urls": [handle.status_url, handle.response_url, handle.cancel_url],
        "seen": [shown(status) for status in seen],
        "result": await handle.get(),
        "result_by_id": await fal.result(question["endpoint"], handle.request_id),
    }


def subscribe(fal, question):
    updates, queued = [], []
    result = fal.subscribe(
        question["endpoint"],
        question["input"],
        with_logs=question["logs"],
        on_enqueue=queued.append,
        on_queue_update=lambda update: updates.append(shown(update)),
    )
    return {"result": result, "queued": queued, "updates": updates}


async def subscribe_async(fal, question):
    updates, queued = [], []
    result = await fal.subscribe(
        question["endpoint"],
        question["input"],
        with_logs=question["logs"],
        on_enqueue=queued.append,
        on_queue_update=lambda update: updates.append(shown(update)),
    )
    return {"result": result, "queued": queued, "updates": updates}


def submit_with_options(fal, question):
    return fal.submit(question["endpoint"], question["input"], **question["options"]).request_id


def result_of_submit_with_options(fal, question):
    return fal.submit(question["endpoint"], question["input"], **question["options"]).get()


def stream(fal, question):
    return list(fal.stream(question["endpoint"], question["input"]))


async def stream_async(fal, question):
    return [event async for event in fal.stream(question["endpoint"], question["input"])]


def realtime(fal, question):
    with fal.realtime(question["endpoint"]):
        return "connected"


async def realtime_async(fal, question):
    async with fal.realtime(question["endpoint"]):
        return "connected"


def cancel(fal, question):
    handle = fal.submit(question["endpoint"], question["input"])
    handle.cancel()
    statuses = list(handle.iter_events(interval=0.05))
    try:
        result = handle.get()
    except Exception as error:
        result = failure(error)
    return {"status": shown(statuses[-1]), "result": result}


async def cancel_async(fal, question):
    handle = await fal.submit(question["endpoint"], question["input"])
    await handle.cancel()
    statuses = [status async for status in handle.iter_events(interval=0.05)]
    try:
        result = await handle.get()
    except Exception as error:
        result = failure(error)
    return {"status": shown(statuses[-1]), "result": result}


def encode_file(fal, question):
    """The picture inside the request: no upload at all."""
    picture = fal_client.encode_file(question["path"])
    return fal.run(question["endpoint"], {**question["input"], "image_url": picture})


def upload(fal, question):
    url = fal.upload_file(question["path"])
    return {"url": url, "result": fal.run(question["endpoint"], {**question["input"], "image_url": url})}


async def upload_async(fal, question):
    url = await fal.upload_file(question["path"])
    return {"url": url, "result": await fal.run(question["endpoint"], {**question["input"], "image_url": url})}


def upload_by_signed_url(fal, question):
    """The client's other way, that it falls back to."""
    url = fal.upload(Path(question["path"]).read_bytes(), "image/png", "a.png", repository="fal")
    return {"url": url, "result": fal.run(question["endpoint"], {**question["input"], "image_url": url})}


def upload_with_an_access_list(fal, question):
    settings = fal_client.StorageSettings(initial_acl=fal_client.StorageACL(default=question["decision"]))
    content = Path(question["path"]).read_bytes()
    url = fal.upload(content, "image/png", "a.png", repository=question["repository"], lifecycle=settings)
    return {"url": url}


def upload_that_fails(fal, question):
    return fal.upload(Path(question["path"]).read_bytes(), question["type"], "a.png")


def status(fal, question):
    return shown(fal.status(question["endpoint"], question["request_id"]))


def result(fal, question):
    return fal.result(question["endpoint"], question["request_id"])


def shown(status):
    return {"state": type(status).__name__, **vars(status)}


def failure(error):
    return {
        "class": type(error).__name__,
        "message": getattr(error, "message", str(error)),
        "status": getattr(error, "status_code", None),
        "error_type": code(error),
        "request_id": getattr(error, "response_headers", {}).get("x-fal-request-id"),
    }


def code(error):
    """The code of an error; before 0.11 the client leaves it in the answer."""
    if hasattr(error, "error_type") or not hasattr(error, "response"):
        return getattr(error, "error_type", None)
    return error.response.json().get("error_type")


def answer(question):
    scenario = globals()[question["scenario"]]
    if not asyncio.iscoroutinefunction(scenario):
        return scenario(fal_client.SyncClient(key=question["session"]), question)

    async def in_loop():
        return await scenario(fal_client.AsyncClient(key=question["session"]), question)

    return asyncio.run(in_loop())


for line in sys.stdin:
    question = json.loads(line)
    try:
        reply = {"outcome": answer(question)}
    except Exception as error:
        reply = {"error": failure(error)}
    print(json.dumps(reply), flush=True)
