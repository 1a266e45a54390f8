"""Lines of a byte stream as they arrive: a log file, or a pipe that somebody is still writing to."""

from __future__ import annotations

import codecs
from collections.abc import Callable, Iterator
from typing import Final

LONGEST: Final = 65_536
"""Bytes of a line that are kept; a line without end must not fill the memory."""

CHUNK: Final = 65_536
"""Bytes that are asked for at once."""


_ENCODINGS: Final = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
"""By the mark that a file may begin with: editors and shells of Windows write it."""


def text_of(content: bytes) -> str:
    """The text of a file: in the encoding of its byte order mark, else in UTF-8, with U+FFFD for what is none."""
    mark = next((mark for mark in _ENCODINGS if content.startswith(mark)), b"")
    return content[len(mark) :].decode(_ENCODINGS.get(mark, "utf-8"), errors="replace")


def _as_utf8(read: Callable[[int], bytes]) -> Callable[[int], bytes]:
    """The stream without its byte order mark, and, where that says UTF-16, in UTF-8."""
    start = read(CHUNK)
    while start and start not in _ENCODINGS and any(mark.startswith(start) for mark in _ENCODINGS):
        chunk = read(CHUNK)
        if not chunk:
            break
        start += chunk
    mark = next((mark for mark in _ENCODINGS if start.startswith(mark)), b"")
    waiting = [start[len(mark) :]]

    def again(most: int) -> bytes:
        return waiting.pop() if waiting and waiting[0] else read(most)

    if _ENCODINGS.get(mark, "utf-8") == "utf-8":
        return again
    decoder = codecs.getincrementaldecoder(_ENCODINGS[mark])(errors="replace")

    def decoded(most: int) -> bytes:
        while chunk := again(most):
            if text := decoder.decode(chunk):
                return text.encode("utf-8", errors="replace")
        return decoder.decode(b"", final=True).encode("utf-8")

    return decoded


def arriving_lines(read: Callable[[int], bytes], longest: int = LONGEST) -> Iterator[list[str]]:
    """Groups of the lines that a stream gives, each group as soon as it has come.

    Args:
        read: returns what is there, at most so many bytes, waiting only while there is nothing; b"" at the end (`read1` of a binary file).
        longest: bytes of a line that are kept; the rest of it is passed over.

    Yields:
        The lines that have been completed, without their ends (LF or CRLF), decoded as UTF-8 with U+FFFD for what is none (or as UTF-16,
        where the stream begins with that mark). A last line without an end comes at the end of the stream.
    """
    read = _as_utf8(read)
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
