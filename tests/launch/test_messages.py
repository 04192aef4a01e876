import io
import unicodedata
from contextlib import redirect_stderr

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launch.messages import print_error
from pipeline.errors import in_one_line

ANY_TEXT = st.text(st.characters(exclude_categories=()))


@given(ANY_TEXT)
def test_any_text_is_one_line_without_control_characters(text):
    line = in_one_line(text)
    assert len(f"{line}x".splitlines()) == 1
    assert not {unicodedata.category(character) for character in line} & {"Cc", "Cs", "Zl", "Zp"}


@pytest.mark.parametrize("text", ["", "the file a b.txt: 5 %", "語彙 ü 🙂", r"C:\n"])
def test_what_can_be_shown_is_not_changed(text):
    assert in_one_line(text) == text


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("a\nb\r\tc", r"a\nb\r\tc"),
        ("\x1b[31m", r"\x1b[31m"),
        ("\udcff", r"\udcff"),
        ("\u2028", r"\u2028"),
    ],
)
def test_what_cannot_be_shown_is_escaped(text, line):
    assert in_one_line(text) == line


@given(ANY_TEXT)
def test_an_error_can_be_printed_in_any_encoding(text):
    stderr = io.TextIOWrapper(io.BytesIO(), "ascii", errors="backslashreplace")
    with redirect_stderr(stderr):
        print_error("clozemill verb", text)
    stderr.flush()
    assert stderr.buffer.getvalue().count(b"\n") == 1
