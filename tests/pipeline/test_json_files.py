import json
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.json_files import (
    NO_OTHER_KEYS,
    DamagedFileError,
    json_text,
    read_foreign_json,
    read_json,
    write_json,
)

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=10,
)


@dataclass(frozen=True)
class Facts:
    """What the files of these tests hold."""

    step: int
    rates: dict[str, float]

    __pydantic_config__: ClassVar = NO_OTHER_KEYS


FACTS = {"step": 5, "rates": {"peak": 0.1, "größte": 2e-5}}


@given(st.dictionaries(st.text().filter(lambda key: key != "content_sha256"), VALUES, max_size=4))
def test_what_was_written_is_read(content):
    text = json_text(content)
    read = json.loads(text)
    read.pop("content_sha256")
    assert read == content
    assert json_text(read) == text


def test_a_file_is_read_as_its_type(tmp_path):
    path = tmp_path / "facts.json"
    write_json(path, FACTS)
    assert read_json(path, Facts) == Facts(**FACTS)
    assert read_json(path, dict[str, Any]) == FACTS


def test_no_flipped_bit_is_accepted(tmp_path):
    path = tmp_path / "facts.json"
    write_json(path, FACTS)
    content = path.read_bytes()
    for number in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[number // 8] ^= 1 << number % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedFileError, match=r"facts\.json is damaged"):
            read_json(path, Facts)


def test_a_file_without_a_digest_is_read_with_one_warning(tmp_path, caplog):
    for name in ("a.json", "b.json"):
        (tmp_path / name).write_text(json.dumps(FACTS))
        assert read_json(tmp_path / name, Facts) == Facts(**FACTS)
    (warning,) = caplog.messages
    assert str(tmp_path) in warning


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"3",
        b"[]",
        b"null",
        b"{}",
        b"[" * 100_000,
        b'{"step": ' + b"[" * 500 + b"]" * 500 + b"}",
        b'{"step": "5", "rates": {}}',
        b'{"step": true, "rates": {}}',
        b'{"step": 5, "rates": {"peak": null}}',
        b'{"step": 5, "rates": {}, "more": 1}',
        b'{"step": 5, "rates": {}, "a\\nb": 1}',
        b'{"step": 5, "rates": {}, "content_sha256": 7}',
        b'{"step": ' + b"9" * 5000 + b', "rates": {}}',
    ],
)
@pytest.mark.parametrize("read", [read_json, read_foreign_json])
def test_a_wrong_file_is_one_line_with_its_name(tmp_path, content, read):
    path = tmp_path / "facts.json"
    path.write_bytes(content)
    with pytest.raises(DamagedFileError) as raised:
        read(path, Facts)
    assert str(raised.value).startswith(f"{path} is damaged: ")
    assert "\n" not in str(raised.value)


def test_a_missing_file_is_no_damage(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_json(tmp_path / "facts.json", Facts)
