"""Broken files end in an error of ours; more of them: benchmarks/fuzz.py."""

import queue
import warnings

import pytest

from benchmarks import fuzz


@pytest.mark.parametrize("name", fuzz.PARSERS)
def test_no_file_is_worse_than_an_error_of_ours(name):
  results = queue.SimpleQueue()
  with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Pillow's, of tags.
    fuzz.fuzz(name, 200, 1, results)
  counts, bad = results.get()
  assert not bad
  assert counts.get("read", 0) + counts.get("refused", 0) == 200
  # The changes neither leave all files whole nor break all of them.
  assert name == "validation.jsonl" or counts["refused"] > 0
  assert counts.get("read", 0) > 0
