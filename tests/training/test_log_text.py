"""Real lines become messages of the form that the classifier was trained on."""

from __future__ import annotations

import time

import pytest
import torch

from latent_drift.models.log_alphabet import encode_log
from latent_drift.training.log_text import encode_line, encode_lines, message_of


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("ERROR: disk full", "ERROR: disk full"),
        ("2026-10-16 23:04:01,123 ERROR db.pool: no connection", "ERROR db.pool: no connection"),
        ("2026-10-16T23:04:01.123Z INFO ready", "INFO ready"),
        ("2026-10-16T23:04:01+00:00 host prog[17]: DEBUG x", "DEBUG x"),
        ("[2026-10-16 10:00:00] [WARN] slow", "WARN] slow"),
        ("2025-06-24 14:36:25 startup archives unpack", "startup archives unpack"),
        ("Oct 16 23:04:01 myhost sshd[123]: Failed password", "Failed password"),
        ("Oct  6 23:04:01 myhost kernel: [ 1234.567890] usb 1-1: reset", "usb 1-1: reset"),
        ("<34>Oct 11 22:14:15 mymachine su: failed for lonvick", "failed for lonvick"),
        ("Sun Nov 22 03:36:06 UTC 2026 ERROR", "ERROR"),
        ("12:00:01 WARN retry", "WARN retry"),
        ("1700000000.123 ERROR x", "ERROR x"),
        ("[   12.345678] CPU0: started", "CPU0: started"),
        ("10/16/26 12:00:00 ERROR", "ERROR"),
        ("--- !! START", "START"),
        # what only looks like a stamp stays
        ("404 not found", "404 not found"),
        ("3 retries", "3 retries"),
        ("May be late", "May be late"),
        ("ERROR 2026-10-16 23:04:01 late", "ERROR 2026-10-16 23:04:01 late"),
        ("10.0.0.1 - - GET /", "10.0.0.1 - - GET /"),
        ("", ""),
        (" \t ", ""),
    ],
)
def test_stamps_and_senders_are_passed_over(line: str, message: str) -> None:
    assert message_of(line) == message


def test_letters_count_in_either_case_and_positions_are_kept() -> None:
    indices = encode_line("Straße ſ_é!", 14, whole=True)
    assert indices == encode_log("STRA_E ___!___".replace(" ", "_")).tolist()
    assert encode_line("error", 7) == encode_log("ERROR__").tolist()


def test_long_lines_are_cut_and_short_ones_padded() -> None:
    tokens, has_content = encode_lines(["A" * 1000, "b"], 5)
    assert tokens.tolist() == [encode_log("AAAAA").tolist(), encode_log("B____").tolist()]
    assert has_content == [True, True]


@pytest.mark.parametrize("line", ["", "   ", "\t", "----", "中文", "\ufffd\ufffd", "2026-10-16 23:04:01"])
def test_a_line_without_a_message_has_none(line: str) -> None:
    assert encode_line(line, 50) is None


def test_no_lines_give_no_rows() -> None:
    tokens, has_content = encode_lines([], 50)
    assert tokens.shape == (0, 50)
    assert tokens.dtype == torch.long
    assert has_content == []


@pytest.mark.parametrize(
    "line", ["!" * 200_000, "[" * 200_000, "1:" * 100_000, "2026-10-16 " * 20_000, " " * 200_000 + "x", "Jan 1 1:11:11 " * 20_000]
)
def test_long_lines_take_no_long_time(line: str) -> None:
    start = time.process_time()
    message_of(line)
    assert time.process_time() - start < 1.0
