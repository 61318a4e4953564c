"""A picture has a process of its own, with bounds that end it."""

from __future__ import annotations

import asyncio
import os
from functools import cache
from pathlib import Path

import pytest

from proxy.errors import Internal, Overloaded
from proxy.pictures.cleaner import ONE_PICTURE, Bounds, PictureCleaner, UncleanPicture, Wanted
from proxy.uploads.sniffing import recognise
from tests.support.private_pictures import bomb, is_private, noise, private_picture, several
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.anyio, pytest.mark.slow]


@cache
def heavy() -> bytes:
    """A picture that takes 200 MB, and most of a second."""
    return bomb(7000, 7000)


def wanted(media_type: str = "image/png", form: str = "raw") -> Wanted:
    return Wanted(media_type, form, 10**8, None)


def cleaner(bounds: Bounds = ONE_PICTURE) -> PictureCleaner:
    return PictureCleaner(1, recognise, bounds)


def children() -> set[str]:
    return set(Path(f"/proc/self/task/{os.getpid()}/children").read_text().split())


async def test_a_private_picture_is_private_no_more() -> None:
    cleaned = await cleaner().clean("acme", "alice", private_picture("JPEG"), wanted("image/jpeg"))
    assert cleaned.startswith(b"\xff\xd8") and not is_private(cleaned)


async def test_a_cleaning_that_takes_too_much_is_ended() -> None:
    before = children()
    for picture, bounds, words in (
        # Three seconds of a fast machine.
        (noise(4900, 4900), ONE_PICTURE._replace(cpu_seconds=1), "takes too long, or is broken"),
        (heavy(), ONE_PICTURE._replace(memory_bytes=100 * 2**20), "takes too much memory"),
    ):
        with pytest.raises(UncleanPicture, match=words):
            await cleaner(bounds).clean("acme", "alice", picture, wanted())
    with pytest.raises(Overloaded) as refused:
        await cleaner(ONE_PICTURE._replace(seconds=0.01)).clean("acme", "alice", heavy(), wanted())
    assert refused.value.retry_after
    assert children() <= before


async def test_a_caller_that_leaves_takes_its_process_along_and_its_turn_is_free() -> None:
    busy, before = cleaner(), children()
    task = asyncio.create_task(busy.clean("acme", "alice", heavy(), wanted()))
    await asyncio.to_thread(wait_until, lambda: children() - before, "no process began")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() <= before
    assert await busy.clean("acme", "alice", private_picture("PNG"), wanted())


async def test_the_reason_reaches_the_caller() -> None:
    with pytest.raises(UncleanPicture, match=r"removed: it is animated, or has several pages; send one picture\."):
        await cleaner().clean("acme", "alice", several("GIF"), wanted("image/gif"))


async def test_a_process_that_fails_is_no_fault_of_the_picture(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(Internal):
        await cleaner(Bounds(cpu_seconds=2**70)).clean("acme", "alice", private_picture("PNG"), wanted())
    (line,) = [record for record in caplog.records if record.message == "picture process failed"]
    assert line.log_fields["exit_code"] == 1  # type: ignore[attr-defined]


async def test_the_process_gets_no_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAL_KEY", "secret:of-the-environment")
    before = children()
    task = asyncio.create_task(cleaner().clean("acme", "alice", heavy(), wanted()))
    environ = await asyncio.to_thread(wait_until, lambda: _environ_of(children() - before), "no process began")
    assert b"FAL_KEY" not in environ
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


def _environ_of(processes: set[str]) -> bytes:
    """The environment of the process that reads a picture; between fork and exec it is still this program."""
    folders = [Path(f"/proc/{process}") for process in processes]
    return b"".join(
        (folder / "environ").read_bytes() + b"end"
        for folder in folders
        if b"proxy.pictures.decoding" in (folder / "cmdline").read_bytes()
    )


@pytest.mark.parametrize(
    ("head", "announced", "found"),
    [
        (private_picture("JPEG")[:4096], "image/jpeg", "image/jpeg"),
        (private_picture("JPEG")[:4096], "application/octet-stream", "image/jpeg"),
        (private_picture("PNG")[:4096], "audio/wav", "image/png"),
        (b"RIFF\x24\0\0\0WAVEfmt ", "audio/wav", None),
        (b"plain text", "text/plain", None),
        (b"plain text", "", None),
    ],
)
def test_a_picture_is_known_by_its_first_bytes(head: bytes, announced: str, found: str | None) -> None:
    assert cleaner().find_type(head, announced) == found


@pytest.mark.parametrize(
    ("head", "announced"),
    [
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "image/heic"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(100), "application/octet-stream"),
        (b"\0\0\0\x18ftypavif\0\0\0\0mif1avif" + bytes(100), "video/mp4"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "image/svg+xml"),
        (b"II*\0" + bytes(100), "image/tiff"),
    ],
)
def test_a_picture_that_cannot_be_written_again_is_refused(head: bytes, announced: str) -> None:
    with pytest.raises(UncleanPicture, match="send one of image/bmp, image/gif, image/jpeg, image/png, image/webp"):
        cleaner().find_type(head, announced)
