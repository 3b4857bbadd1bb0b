"""Ids and stream tokens of predictions."""

from __future__ import annotations

import os
import re

from appliance.domain.prediction import new_id, new_stream_token


def test_ids_and_tokens_are_never_made_twice() -> None:
    ids = [new_id() for _ in range(2000)]  # more than one system call gives bytes for
    tokens = [new_stream_token() for _ in range(2000)]
    assert len({*ids, *tokens}) == 4000
    assert all(re.fullmatch("[0-9a-hjkmnp-tv-z]{26}", id) for id in ids)
    assert all(re.fullmatch("[0-9a-f]{64}", token) for token in tokens)
    joined = "".join(ids)
    assert min(joined.count(character) for character in set(joined)) > len(joined) / 32 / 2


def test_a_forked_process_makes_other_ids() -> None:
    new_id()
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(writing, new_id().encode())
        os._exit(0)
    os.close(writing)
    theirs = os.read(reading, 26).decode()
    os.close(reading)
    os.waitpid(pid, 0)
    assert theirs != new_id()
