"""Hundreds of damaged files through every reader: each a named error or a correct read.

``NBHELPERS_FAULTS=20`` damages twenty files per reader and kind of damage instead of two, and
writes its numbers into the table ``docs/faults.md``.
"""

from __future__ import annotations

import json
import os
import random
import time

import corpus
import fault_table
import psutil
import pytest

EACH = int(os.environ.get("NBHELPERS_FAULTS", "2"))
SEED = 11
ROWS: list[dict] = []


def damages(reader) -> tuple:
    return corpus.BYTE_DAMAGE + (corpus.TEXT_DAMAGE if reader.text else ())


@pytest.mark.parametrize("reader", corpus.READERS, ids=lambda reader: reader.name)
def test_damaged_files_are_refused_by_name_or_read_right(reader, tmp_path):
    whole = tmp_path / "whole"
    whole.mkdir()
    path = reader.make(whole)
    good = reader.read(path)
    content = path.read_bytes()
    assert not corpus.wrong_in(reader, good, good, path)
    chance = random.Random(f"{SEED} {reader.name}")
    lost = []
    memory = psutil.Process()
    for damage in damages(reader):
        row = {
            "reader": reader.name,
            "damage": damage.__name__,
            "refused": 0,
            "read": 0,
            "lost": 0,
            "examples": [],
        }
        for number in range(EACH):
            path.write_bytes(damage(content, chance))
            before = memory.memory_info().rss
            began = time.monotonic()
            kind, words = corpus.answer(reader, path, good)
            if (
                time.monotonic() - began > corpus.SECONDS
                or memory.memory_info().rss - before > corpus.BYTES
            ):
                kind = "lost"
                words = "took too long or too much memory"
            row[kind] += 1
            if kind == "lost":
                row["examples"].append(words[:200])
                lost.append(f"{damage.__name__} {number}: {words}")
            if kind == "refused":
                assert len(words) > 20 and words[0].isprintable()
        ROWS.append(row)
    assert not lost, f"{len(lost)} of {EACH * len(damages(reader))} lost:\n" + "\n".join(lost)


def test_the_corpus_is_large_enough():
    assert sum(EACH * len(damages(reader)) for reader in corpus.READERS) >= 500


@pytest.mark.skipif(
    "NBHELPERS_FAULTS" not in os.environ, reason="the table is written with NBHELPERS_FAULTS=20"
)
def test_write_the_table():
    assert len({row["reader"] for row in ROWS}) == len(corpus.READERS), "run the whole file"
    fault_table.record("damaged files", {"seed": SEED, "each": EACH, "rows": ROWS})


def test_the_table_is_what_its_numbers_say_and_nothing_was_lost():
    numbers = json.loads(fault_table.NUMBERS.read_text(encoding="utf-8"))
    assert fault_table.page(numbers) == fault_table.PAGE.read_text(encoding="utf-8")
    assert sum(row["refused"] + row["read"] for row in numbers["damaged files"]["rows"]) >= 500
    assert sum(row["kills"] for row in numbers["kills"]["rows"]) >= 100
    lost = [row["lost"] for part in numbers.values() for row in part["rows"]]
    assert not any(lost), lost
