import os
import subprocess
from urllib.request import Request, urlopen

import pytest

from pipeline.errors import UserError
from pipeline.patterns import check_not_input, find_files
from pipeline.storage import StoredPath, location

FILES = (
    "a.txt",
    "b.jsonl",
    ".hidden.txt",
    "sub/c.txt",
    "sub/.c.txt.crc",
    "sub/deep/d.txt",
    ".cache/e.txt",
    "wiki/AA/wiki_00",
    "wiki/AB/wiki_01",
    "odd/x[1].txt",
    "odd/x1.txt",
    "odd/[v2]/y.txt",
    "odd/a,b*.txt",
)
ALL = sorted(name for name in FILES if not name.startswith(".") and "/." not in name)


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A folder with `FILES`, the current one."""
    for name in FILES:
        path = tmp_path / "tree" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("One.\n")
    monkeypatch.chdir(tmp_path / "tree")
    return tmp_path / "tree"


def found(pattern):
    return sorted(os.path.relpath(path) for path in find_files(pattern))


PATTERNS = (
    "* *.txt .* ** **/* **/*.txt */*.txt sub/**/* sub/?.txt .*/* **/deep/* **/**/*.txt [ab].* "
    "[!a].jsonl wiki/*/wiki_* sub/.*"
).split()


@pytest.mark.parametrize("pattern", PATTERNS)
def test_patterns_mean_what_they_mean_in_bash(pattern, tree):
    (tree / "odd" / "x[1].txt").unlink()  # bash expands it again, as a pattern
    script = f'shopt -s globstar nullglob; for f in {pattern}; do [ -f "$f" ] && echo "$f"; done'
    output = subprocess.run(
        ["bash", "-c", script], stdout=subprocess.PIPE, text=True, check=False
    ).stdout
    assert found(pattern) == sorted(output.splitlines())
    assert found(f"{tree}/{pattern}") == found(pattern)


@pytest.mark.parametrize("pattern", [".", "./", "**", "../tree", "../tree/", "../tree/**"])
@pytest.mark.usefixtures("tree")
def test_a_folder_means_all_files_below_it(pattern):
    assert found(pattern) == ALL


@pytest.mark.usefixtures("tree")
def test_a_glob_that_matches_only_folders_means_all_files_below_them():
    assert found("wiki/*") == found("wiki/*/") == ["wiki/AA/wiki_00", "wiki/AB/wiki_01"]


@pytest.mark.usefixtures("tree")
def test_a_glob_that_matches_folders_too_says_that_it_leaves_them_out(caplog):
    assert found("*") == ["a.txt", "b.jsonl"]
    assert "/tree/odd" in caplog.text


@pytest.mark.usefixtures("tree")
def test_two_stars_in_a_name_stand_for_any_folders():
    assert found("**.txt") == [name for name in ALL if name.endswith(".txt")]
    assert found("s**.txt") == ["sub/c.txt", "sub/deep/d.txt"]


@pytest.mark.usefixtures("tree")
def test_any_number_of_stars_is_answered_at_once():
    assert found("**/" * 50 + "c.txt") == ["sub/c.txt"]
    assert found("*" * 50) == ALL
    with pytest.raises(UserError, match="too many"):
        find_files("a**" * 50)


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("odd/x[1].txt", ["odd/x[1].txt"]),
        ("odd/x[0-9].txt", ["odd/x1.txt"]),
        ("odd/[v2]/*", ["odd/[v2]/y.txt"]),
        ("odd/[v2]", ["odd/[v2]/y.txt"]),
        ("odd/a,b*.txt", ["odd/a,b*.txt"]),
        ("nothing", []),
        ("nothing/*", []),
        ("a.txt/*", []),
    ],
)
@pytest.mark.usefixtures("tree")
def test_an_existing_name_with_brackets_is_that_name(pattern, expected):
    assert found(pattern) == expected


def test_links_to_folders_are_followed_only_where_a_name_matches(tree, caplog):
    (tree / "link").symlink_to("sub")
    (tree / "sub" / "loop").symlink_to("..")
    assert found("**") == ALL
    assert "/tree/link" in caplog.text
    assert found("link/*") == ["link/c.txt"]
    assert "link/c.txt" in found("*/*.txt")


@pytest.mark.usefixtures("tree")
def test_a_folder_without_permission_is_an_error_that_names_it(monkeypatch):
    def scandir(path):
        if path.endswith("/sub"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    real = os.scandir
    monkeypatch.setattr(os, "scandir", scandir)
    assert found("*.txt") == ["a.txt"]
    for pattern in ("**", "*/*.txt", "."):
        with pytest.raises(UserError, match=r"cannot search the folder .*/tree/sub: Permission"):
            find_files(pattern)


@pytest.mark.parametrize(
    ("pattern", "output", "is_error"),
    [
        (".", "out", True),
        ("../tree/", "sub/new/out", True),
        ("**", "out", True),
        ("*", "out", False),
        ("wiki/*", "wiki/out", True),
        ("wiki/*/", "wiki/out", True),
        ("*/*.txt", "out", True),
        ("**/*.txt", "sub/out", True),
        ("*.txt", "out", False),
        ("wiki/*/wiki_*", "wiki/out", False),
        ("sub", "out", False),
        (".", "../out", False),
        (".", ".out", False),
        ("gs://bucket/*", "out", False),
        ("hdfs://bucket/**", "out", False),
        ("gs://bucket/**", "gs://bucket/out", True),
        ("gs://bucket/a/", "gs://bucket/a/out", True),
        ("gs://bucket/a", "gs://bucket/a/out", True),
        ("gs://bucket", "gs://bucket/out", True),
        ("gs://bucket/a", "gs://bucket/ab/out", False),
        ("gs://bucket/**", "gs://other/out", False),
        ("s3://bucket/**", "gs://bucket/out", False),
    ],
)
@pytest.mark.usefixtures("tree")
def test_an_output_among_the_input_is_an_error_before_it_exists(pattern, output, is_error):
    folder = location(output)
    files = [folder / "vocab.txt"]
    if is_error:
        with pytest.raises(UserError, match=f"--input_file=.* also matches {output}.*--output_dir"):
            check_not_input([pattern], "output_dir", files, folder)
    else:
        check_not_input([pattern], "output_dir", files, folder)


@pytest.fixture
def stored(tree, bucket, server):
    """A folder of a store with `FILES`."""
    for name in FILES:
        (bucket / "tree" / name).upload((tree / name).read_bytes())
    server.reset()
    return bucket / "tree"


def test_patterns_mean_the_same_on_a_store_as_on_a_disk(tree, stored, caplog):
    others = "wiki/* wiki/*/ **.txt s**.txt **/**/c.txt odd/x[1].txt odd/x[0-9].txt odd/[v2]/* "
    others += "odd/[v2] odd/a,b*.txt odd/*[*] a.txt sub sub/ nothing nothing/* a.txt/*"
    for pattern in [*PATTERNS, *others.split(), "", "/", "/**", "//a.txt"]:
        caplog.clear()
        on_disk = {
            path.removeprefix(f"{tree}"): stamp
            for path, stamp in find_files(f"{tree}/{pattern}").items()
        }
        warning = caplog.text.replace(str(tree), "")
        caplog.clear()
        on_store = find_files(f"{stored}/{pattern}")
        assert [path.removeprefix(f"{stored}") for path in on_store] == list(on_disk), pattern
        assert [stamp.size for stamp in on_store.values()] == [s.size for s in on_disk.values()]
        assert caplog.text.replace(str(stored), "") == warning


@pytest.mark.parametrize(
    ("pattern", "methods"),
    [
        ("a.txt", ["HEAD"]),
        ("sub", ["HEAD", "GET"]),
        ("sub/", ["GET"]),
        ("**/*.txt", ["GET"]),
        ("odd/x[0-9].txt", ["GET"]),
        ("wiki/*/wiki_*", ["GET"]),
        ("wiki/*", ["GET", "GET"]),
        ("[ab].*", ["GET"]),
    ],
)
def test_one_list_finds_all_files_of_a_pattern(pattern, methods, stored, server):
    assert find_files(f"{stored}/{pattern}")
    assert [method for method, _ in server.requests] == methods


def test_a_glob_of_names_in_one_folder_lists_only_that(stored, monkeypatch):
    monkeypatch.setattr(StoredPath, "stamps", None)  # which lists what is in its folders too
    assert list(find_files(f"{stored}/*.txt")) == [f"{stored}/a.txt"]


def test_an_output_among_folders_of_a_store_is_an_error_before_it_exists(stored):
    out = stored / "wiki" / "out"
    with pytest.raises(UserError, match=f"/wiki/\\* also matches {out}, of --output_dir"):
        check_not_input([f"{stored}/wiki/*"], "output_dir", [out / "vocab.txt"], out)
    check_not_input([f"{stored}/*"], "output_dir", [stored / "out" / "vocab.txt"], stored / "out")


def test_the_empty_objects_that_mark_folders_are_no_files(stored, server):
    for name in ("sub", "wiki/AA"):
        url = f"{server.environment['AWS_ENDPOINT_URL']}/{stored.root[5:]}/tree/{name}/"
        urlopen(Request(url, b"", method="PUT")).close()
    assert len(find_files(f"{stored}/sub/**")) == 2
    assert len(find_files(f"{stored}/sub/*")) == 1
    assert stored / "sub" not in {*(stored / "sub").iterdir(), *(stored / "sub").rglob("*")}
    assert len(find_files(f"{stored}/**")) == len(ALL)
    assert list(find_files(f"{stored}/wiki/*")) == [
        f"{stored}/wiki/AA/wiki_00",
        f"{stored}/wiki/AB/wiki_01",
    ]


def test_a_file_and_a_folder_of_one_name_are_both_read(stored):
    (stored / "sub").upload(b"Two.\n")
    assert f"{stored}/sub" in find_files(f"{stored}/**")
    assert f"{stored}/sub/c.txt" in find_files(f"{stored}/**")
    assert list(find_files(f"{stored}/sub")) == [f"{stored}/sub"]
    assert f"{stored}/sub" in find_files(f"{stored}/*")
    assert not find_files(f"{stored}/nothing")
