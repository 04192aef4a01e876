import os
import socket
from contextlib import nullcontext

import pytest
from absl import flags
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from launch.flag_files import check_not_empty, expand_flag_files


@pytest.fixture
def write(tmp_path):
    """A function that writes a flag file and returns the flag that names it."""

    def write(name, content):
        data = content if isinstance(content, bytes) else content.encode()
        (tmp_path / name).write_bytes(data)
        return f"--flagfile={tmp_path / name}"

    return write


def test_the_lines_of_a_file_take_the_place_of_its_name(write):
    inner = write("inner.flags", "--b=2\n\n# a comment\n// another\n  --c=3 4  \n")
    outer = write("outer.flags", f"--a=1\n{inner}\n--d=5")
    assert expand_flag_files(["--x", outer, "--y"]) == [
        *("--x", "--a=1", "--b=2", "--c=3 4", "--d=5", "--y")
    ]


@pytest.mark.parametrize("dashes", ["-", "--"])
def test_the_name_may_be_the_next_word(write, dashes):
    name = write("a.flags", "--a=1").partition("=")[2]
    assert expand_flag_files([f"{dashes}flagfile", name, "--b"]) == ["--a=1", "--b"]


def test_a_file_may_be_named_twice(write):
    flag = write("a.flags", "--a=1")
    assert expand_flag_files([flag, flag]) == ["--a=1", "--a=1"]


def test_what_follows_two_dashes_stays_as_it_is():
    assert expand_flag_files(["--a", "--", "--flagfile=missing"]) == [
        "--a",
        "--",
        "--flagfile=missing",
    ]


@pytest.mark.parametrize("through", ["{folder}/a.flags", "{folder}/../{name}/a.flags"])
def test_a_file_that_includes_itself_is_an_error(write, tmp_path, through):
    path = through.format(folder=tmp_path, name=tmp_path.name)
    write("b.flags", f"--flagfile={path}")
    flag = write("a.flags", f"--flagfile={tmp_path}/b.flags")
    with pytest.raises(flags.Error, match=r"a\.flags includes itself"):
        expand_flag_files([flag])


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("--a=\u00fc\n".encode("latin-1"), "is not UTF-8 text"),
        ("--a=1\n".encode("utf-16"), "is not UTF-8 text"),
        (b"--a=b\0c\n", "is not text"),
    ],
    ids=["Latin-1", "UTF-16", "NUL"],
)
def test_a_file_that_is_not_text_is_an_error(content, says, write):
    with pytest.raises(flags.Error, match=says):
        expand_flag_files([write("a.flags", content)])


def test_only_a_readable_file_can_be_a_flag_file(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket"))
    for path, says in (
        (tmp_path, "Is a directory"),
        (tmp_path / "missing", "No such file"),
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "pipe", "is a named pipe"),
        (tmp_path / "socket", "is a socket"),
        ("/dev/zero", "is a device"),
        ("", "--flagfile is empty"),
    ):
        with pytest.raises(flags.Error, match=says):
            expand_flag_files([f"--flagfile={path}"])
    for words in (["--flagfile"], ["--flagfile", ""], ["--flagfile=", "--model=tiny"]):
        with pytest.raises(flags.Error, match="--flagfile is empty: give a file"):
            expand_flag_files(words)


@pytest.mark.parametrize(
    ("words", "empty"),
    [
        ([], None),
        (["--maybe=", "--number=0", "--noswitch"], None),
        (["--text=", "--text=a"], None),
        (["--text="], "text"),
        (["--names="], "names"),
        (["--each="], "each"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_empty_text_is_an_error_unless_it_is_the_default(words, empty):
    values = flags.FlagValues()
    flags.DEFINE_string("text", "a", "", flag_values=values)
    flags.DEFINE_list("names", None, "", flag_values=values)
    flags.DEFINE_multi_string("each", [], "", flag_values=values)
    flags.DEFINE_string("maybe", "", "", flag_values=values)
    flags.DEFINE_integer("number", 1, "", flag_values=values)
    flags.DEFINE_boolean("switch", True, "", flag_values=values)
    values(["verb", *words])
    expected = pytest.raises(flags.Error, match=f"--{empty} is empty: give it a value")
    with expected if empty else nullcontext():
        check_not_empty(values[name] for name in values)


def test_an_argument_that_is_not_text_is_an_error():
    with pytest.raises(flags.Error, match="is not text"):
        expand_flag_files([os.fsdecode(b"--a=\xff")])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_content_is_flags_or_an_error(write, content):
    try:
        expanded = expand_flag_files([write("any.flags", content)])
    except flags.Error:
        return
    assert all(line.strip() == line != "" for line in expanded)
