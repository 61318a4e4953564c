"""A flame graph as an SVG picture: the width of a frame is its share, and the frames that it called stand on it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from xml.sax.saxutils import escape, quoteattr

WIDTH, LINE = 1200, 18
#: Narrower frames are left out.
LEAST_SHARE = 0.004
_LETTER = 6.7
_COLOURS = {True: "#f0a35e", False: "#d9d4cc"}


@dataclass
class Frame:
    """A function with those that it called; `samples` includes theirs."""

    name: str
    samples: int = 0
    called: dict[str, Frame] = field(default_factory=dict)

    def add(self, names: Sequence[str], samples: int) -> None:
        """Add the samples of a stack, the outermost function first."""
        self.samples += samples
        if names:
            self.called.setdefault(names[0], Frame(names[0])).add(names[1:], samples)

    def depth(self, least: float) -> int:
        deeper = [one.depth(least) for one in self.called.values() if one.samples >= least]
        return 1 + max(deeper, default=0)


def draw(root: Frame) -> str:
    """Draw a frame and all above it; those of the proxy's own code are orange."""
    least = root.samples * LEAST_SHARE
    height = root.depth(least) * LINE
    frames = "\n".join(_draw(root, 0.0, height - LINE, WIDTH / root.samples, least))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace"'
        f' font-size="11">\n{frames}\n</svg>\n'
    )


def _draw(frame: Frame, left: float, top: int, scale: float, least: float) -> Iterator[str]:
    width, share = frame.samples * scale, frame.samples * scale / WIDTH
    shown = frame.name[: max(0, int((width - 4) / _LETTER))]
    title = f"{frame.name}: {share:.1%}"
    yield (
        f'<g><title>{escape(title)}</title><rect x="{left:.1f}" y="{top}" width="{max(width - 0.5, 0.5):.1f}"'
        f' height="{LINE - 1}" fill={quoteattr(_COLOURS["proxy/" in frame.name])}/>'
        f'<text x="{left + 2:.1f}" y="{top + 12}">{escape(shown)}</text></g>'
    )
    for called in sorted(frame.called.values(), key=lambda one: one.name):
        if called.samples >= least:
            yield from _draw(called, left, top - LINE, scale, least)
        left += called.samples * scale
