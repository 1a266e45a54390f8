"""Lines of a stream, whatever pieces it arrives in."""

from __future__ import annotations

import codecs
import io

import pytest

from latent_drift.training.lines import CHUNK, arriving_lines, text_of

CONTENT = b"one\r\n\ntwo\xff\xfe\r\r\nth\xc3\xa9ree\n" + b"x" * 300 + b"\nlast"
LINES = ["one", "", "two\ufffd\ufffd\r", "th\u00e9ree", "x" * 300, "last"]


def pieces(content: bytes, size: int):  # type: ignore[no-untyped-def]
    stream = io.BytesIO(content)
    return lambda most: stream.read(min(size, most))


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, CHUNK])
def test_lines_do_not_depend_on_the_pieces(size: int) -> None:
    assert [line for group in arriving_lines(pieces(CONTENT, size)) for line in group] == LINES


def test_lines_come_as_soon_as_they_are_complete() -> None:
    arriving = iter([b"a\nb", b"", b"never asked for"])
    groups = arriving_lines(lambda most: next(arriving))
    assert next(groups) == ["a"]
    assert list(groups) == [["b"]]


@pytest.mark.parametrize("size", [5, 4096])
@pytest.mark.parametrize("length", [9, 10, 11, 12, 50_000])
@pytest.mark.parametrize("end", [b"\n", b"\r\n", b""])
def test_a_line_without_end_is_kept_to_its_limit(size: int, length: int, end: bytes) -> None:
    groups = arriving_lines(pieces(b"y" * length + end + (b"z\n" if end else b""), size), longest=10)
    expected = ["y" * min(length, 10)] + (["z"] if end else [])
    assert [line for group in groups for line in group] == expected


def test_nothing_is_no_line() -> None:
    assert list(arriving_lines(lambda most: b"")) == []


@pytest.mark.parametrize("size", [1, 2, 3, 7, CHUNK])
@pytest.mark.parametrize(
    ("mark", "encoding"), [(codecs.BOM_UTF8, "utf-8"), (codecs.BOM_UTF16_LE, "utf-16-le"), (codecs.BOM_UTF16_BE, "utf-16-be")], ids=lambda v: str(v)
)
def test_a_byte_order_mark_says_the_encoding_and_is_no_character(mark: bytes, encoding: str, size: int) -> None:
    lines = ["ERROR caf\u00e9", "", "INFO \U0001f4be", "last"]
    content = mark + "\r\n".join(lines).encode(encoding)
    assert [line for group in arriving_lines(pieces(content, size)) for line in group] == lines
    assert text_of(content).split("\r\n") == lines
    assert list(arriving_lines(pieces(mark, size))) == []


@pytest.mark.parametrize("content", [b"\xff", b"\xef\xbb", b"\xffone\n", b"\xef\xbbone\n"])
@pytest.mark.parametrize("size", [1, CHUNK])
def test_half_a_mark_is_bytes_like_any_other(content: bytes, size: int) -> None:
    assert [line for group in arriving_lines(pieces(content, size)) for line in group] == content.decode("utf-8", errors="replace").splitlines()
    assert text_of(content) == content.decode("utf-8", errors="replace")


def test_the_look_for_a_mark_holds_no_line_back() -> None:
    arriving = iter([b"a", b"\n", b""])
    groups = arriving_lines(lambda most: next(arriving))
    assert next(groups) == ["a"]
