"""Lines of a byte stream as they arrive: a log file, or a pipe that somebody is still writing to."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Final

LONGEST: Final = 65_536
"""Bytes of a line that are kept; a line without end must not fill the memory."""

CHUNK: Final = 65_536
"""Bytes that are asked for at once."""


def arriving_lines(read: Callable[[int], bytes], longest: int = LONGEST) -> Iterator[list[str]]:
    """Groups of the lines that a stream gives, each group as soon as it has come.

    Args:
        read: returns what is there, at most so many bytes, waiting only while there is nothing; b"" at the end (`read1` of a binary file).
        longest: bytes of a line that are kept; the rest of it is passed over.

    Yields:
        The lines that have been completed, without their ends (LF or CRLF), decoded as UTF-8 with U+FFFD for what is none. A last line
        without an end comes at the end of the stream.
    """
    begun = bytearray()
    while chunk := read(CHUNK):
        *complete, rest = chunk.split(b"\n")
        lines = []
        for part in complete:
            begun += part[: longest - len(begun) + 1]  # one more, so that a carriage return beyond the end can be told
            lines.append(_text(begun, longest))
            begun.clear()
        begun += rest[: longest - len(begun) + 1]
        if lines:
            yield lines
    if begun:
        yield [_text(begun, longest)]


def _text(line: bytearray, longest: int) -> str:
    return bytes(line).removesuffix(b"\r")[:longest].decode("utf-8", errors="replace")
