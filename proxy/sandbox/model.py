"""The three LLaVA models: an input becomes an Answer. Whatever goes wrong is an Answer too, as it is at fal."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import anyio.to_thread

from proxy.catalog import TOKEN_FIELDS, Endpoint
from proxy.sandbox.answers import Answer, failure, refuse, success
from proxy.sandbox.directives import remove_directives
from proxy.sandbox.pictures import Unloadable
from proxy.sandbox.timing import Timing
from proxy.sandbox.vision import NotAPicture, look_at

#: LLaVA turns a picture into a grid of 24 × 24 patches, a token each.
PICTURE_TOKENS = 576
Load = Callable[[str], Awaitable[bytes]]


async def answer(endpoint: Endpoint, body: Any, load: Load, timing: Timing, fail: str | None = None) -> Answer:
    """Run the model.

    Args:
        load: turns the `image_url` into bytes, or raises `Unloadable`.
        fail: the name of a failure to end in, whatever the input.
    """
    if fail is not None:
        return failure(fail)
    if problems := endpoint.problems(body):
        return refuse(problems)
    try:
        picture = await anyio.to_thread.run_sync(look_at, await load(body["image_url"]))
    except Unloadable as error:
        return _bad_picture(error.kind, str(error))
    except NotAPicture as error:
        return _bad_picture("image_load_error", f"Failed to load the image: {error}")
    prompt = remove_directives(body["prompt"])
    words = f"{picture} You asked: {prompt}".split()[: _ceiling(endpoint, body)]
    return success(_output(endpoint, prompt, words), timing.run_seconds)


def partial_outputs(body: Mapping[str, Any]) -> list[dict[str, Any]]:
    """List the answer as a stream hands it out: the text so far, a word more each time; the last is the whole body."""
    words = str(body["output"]).split()
    partials = [{"output": " ".join(words[: i + 1]), "partial": True} for i in range(len(words) - 1)]
    return [*partials, {**body, "partial": False}]


def _ceiling(endpoint: Endpoint, body: Mapping[str, Any]) -> int | None:
    # A JSON integer may be written with a point (64.0), and slices take none.
    asked = [int(body[name]) for name in TOKEN_FIELDS if name in body]
    return min(asked) if asked else endpoint.default_tokens


def _output(endpoint: Endpoint, prompt: str, words: list[str]) -> dict[str, Any]:
    """Return the fields of an answer that the endpoint's own schema names."""
    fields = {
        "output": " ".join(words),
        "partial": False,
        "stats": {
            "num_input_tokens": PICTURE_TOKENS + len(prompt.split()),
            "num_output_tokens": len(words),
        },
    }
    named = endpoint.output_schema.get("properties", fields)
    return {name: value for name, value in fields.items() if name in named}


def _bad_picture(kind: str, text: str) -> Answer:
    return refuse([{"loc": ["body", "image_url"], "msg": text, "type": kind}])
