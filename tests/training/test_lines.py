"""Lines of a stream, whatever pieces it arrives in."""

from __future__ import annotations

import io

import pytest

from latent_drift.training.lines import CHUNK, arriving_lines

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
