"""A name on a store does what one on a disk does."""

import hashlib
import io
import pickle
from pathlib import Path, PurePosixPath

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import storage
from pipeline.errors import UserError
from pipeline.files import (
    has_sha256,
    local_copy,
    remove_directory,
    sha256_of,
    whole_directory,
    whole_file,
    write_whole,
)
from pipeline.storage import StoredPath, is_for_beam, location, match_with_beam, size_of

pytestmark = pytest.mark.no_backend

# Names that mean something to a shell, a URL, a glob or XML.
NAMES = (
    *("a b", "ü/é", "x#1", "x%20y", "100%", "is?it=1", "s*r", "[z]", "a+b", "a&b", "<x>"),
    *('"q"', "c:d", "back\\slash", "{y}", ".hidden", "~", "😀", "a.b.c", "-", "@", "^`|"),
)


parts = st.text(
    st.characters(exclude_characters="/\0", exclude_categories=["Cc", "Cs"]), min_size=1, max_size=5
).filter(lambda part: part not in (".", ".."))
keys = st.lists(parts, max_size=4).map("/".join)


@given(keys, keys, st.sampled_from(["s3", "gs", "az"]))
def test_a_name_is_made_and_taken_apart_as_on_a_disk(key, other, scheme):
    path, pure = StoredPath(f"{scheme}://bucket") / key, PurePosixPath("/bucket") / key
    assert str(path) == f"{scheme}:/{pure}"
    assert (path.name if key else "bucket") == pure.name
    if key:
        assert (path.stem, path.suffix) == (pure.stem, pure.suffix)
        assert str(path.parent) == f"{scheme}:/{pure.parent}"
        assert [f"{scheme}:/{each}" for each in pure.parents][:-1] == list(map(str, path.parents))
        assert str(path.with_name("new")) == f"{scheme}:/{pure.with_name('new')}"
    else:
        assert path.parent == path
    below = path / other
    assert str(below) == f"{scheme}:/{pure / other}"
    assert below.relative_to(path) == (pure / other).relative_to(pure)
    assert below.is_relative_to(path)
    assert below.is_relative_to(StoredPath(path.root))
    assert not below.is_relative_to(StoredPath(f"{scheme}://another"))
    assert location(str(below)) == below == pickle.loads(pickle.dumps(below))


@given(st.lists(keys, max_size=6))
def test_names_are_in_the_order_of_those_on_a_disk(names):
    paths = [StoredPath("s3://bucket") / name for name in names]
    pures = [PurePosixPath("/bucket") / name for name in names]
    assert [str(path)[4:] for path in sorted(paths)] == [str(pure) for pure in sorted(pures)]


def test_a_folder_is_not_below_one_whose_name_is_a_part_of_its_name():
    assert not StoredPath("s3://b", "data2").is_relative_to(StoredPath("s3://b", "data"))
    assert not StoredPath("s3://b", "data").is_relative_to(Path("data"))
    with pytest.raises(ValueError, match="is not in"):
        StoredPath("s3://b", "x").relative_to(StoredPath("s3://c"))


def test_a_url_is_told_from_a_path():
    assert location("data/x") == Path("data/x")
    assert location("s3://bucket") == location("s3://bucket/") == StoredPath("s3://bucket")
    assert location("gs://bucket//a//b/").key == "a/b"
    assert location("az://container/a").root == "az://container"
    for url, problem in {
        "http://host/x": "knows no URL like http://host/x: give a path, or a URL of s3://, gs://, az://",
        "s3://": "a URL of s3:// has no bucket: give s3://BUCKET/FOLDER",
        "s3:///a": "has no bucket",
        "s3:/bucket/x": "s3:/bucket/x has one slash where a URL has two: add one",
        "hdfs:/bucket/x": "has one slash",
        "s3://bucket/../x": r"leave out its parts \. and \.\.",
        "s3://bucket/a/./x": r"leave out its parts",
        "s3://bucket/a\nb": r"s3://bucket/a\\nb is not a URL of an object",
    }.items():
        with pytest.raises(UserError, match=problem):
            location(url)
    with pytest.raises(UserError) as caught:
        location("s3://key:secret@bucket/x")
    assert "secret" not in str(caught.value)


def test_objects_have_the_names_that_they_are_given(bucket):
    paths = [bucket / "names" / name for name in NAMES]
    for path in paths:
        path.upload(str(path).encode())
    found = list((bucket / "names").rglob("*"))
    assert found == sorted(paths)
    for path in found:
        assert path.is_file()
        assert not path.is_dir()
        assert path.read_text() == str(path)
        assert size_of(path) == len(str(path).encode())
    assert list((bucket / "names").iterdir()) == sorted(
        bucket / "names" / name.partition("/")[0] for name in NAMES
    )
    assert [path.name for path in (bucket / "names").glob("a*")] == ["a b", "a&b", "a+b", "a.b.c"]
    assert (bucket / "names").stamps().keys() == set(paths)
    (bucket / "names").remove_below()
    assert not (bucket / "names").exists()


def test_a_name_that_no_object_can_have_is_one_line(bucket):
    for path in (bucket / "a" / ".." / "b", bucket / "a\nb", bucket / ".."):
        for operation in (path.read_bytes, path.size, lambda each=path: each.upload(b"")):
            with pytest.raises(OSError, match="an object's name has characters or parts such as"):
                operation()


def test_a_folder_is_there_while_there_is_an_object_in_it(bucket):
    folder = bucket / "a"
    assert not folder.exists()
    assert not bucket.is_dir()
    (folder / "b" / "c").upload(b"")
    (bucket / "ab").upload(b"")
    assert folder.is_dir()
    assert bucket.is_dir()
    assert not folder.is_file()
    assert not bucket.is_file()
    assert list(folder.iterdir()) == [folder / "b"]
    assert list(bucket.iterdir()) == [folder, bucket / "ab"]
    (folder / "b" / "c").unlink()
    assert not folder.exists()
    with pytest.raises(FileNotFoundError, match=r"there is no such object: 's3://.*/a'"):
        folder.unlink()
    folder.unlink(missing_ok=True)


def test_more_objects_than_a_list_has_on_a_page(bucket, server, monkeypatch):
    monkeypatch.setattr(storage, "_PAGE", 7)
    from moto.s3.models import s3_backends

    paths = [bucket / "many" / f"{number:04}" for number in range(1005)]
    backend = s3_backends["123456789012"]["aws"]
    for path in paths:
        backend.put_object(bucket.root.removeprefix("s3://"), path.key, b"")
    server.requests.clear()
    assert list((bucket / "many").rglob("*")) == paths
    assert len(server.requests) == 3  # the first is a look at the bucket
    (bucket / "many").remove_below()
    assert not (bucket / "many").is_dir()


def test_an_object_appears_only_where_none_is_or_a_known_one(bucket):
    path = bucket / "a"
    first = path.upload(b"1", only_if="")
    with pytest.raises(FileExistsError):
        path.upload(b"2", only_if="")
    second = path.upload(b"2", only_if=first)
    assert second == path.tag() != first
    with pytest.raises(FileExistsError):
        path.upload(b"3", only_if=first)
    assert path.read_with_tag() == (b"2", second)
    path.unlink()
    with pytest.raises((FileExistsError, FileNotFoundError)):
        path.upload(b"3", only_if=second)


def test_an_object_is_read_as_a_file(bucket, tmp_path):
    content = bytes(range(256)) * 400
    (bucket / "a").upload(content)
    with (bucket / "a").open(buffering=1000) as file:
        assert file.seekable()
        assert file.read(10) == content[:10]
        assert file.seek(-5, io.SEEK_END) == len(content) - 5
        assert file.read() == content[-5:]
        assert file.read() == b""
        assert file.seek(300) == 300
        assert file.seek(6, io.SEEK_CUR) == 306
        assert file.read(2000) == content[306:2306]
        file.seek(len(content) + 10)
        assert file.read() == b""
        for mistake in (lambda: file.seek(-1), lambda: file.seek(-len(content) - 1, io.SEEK_END)):
            with pytest.raises(OSError, match="Invalid argument"):
                mistake()
    assert file.closed
    (bucket / "empty").upload(b"")
    with (bucket / "empty").open() as file:
        assert file.read() == b""
    with pytest.raises(FileNotFoundError):
        (bucket / "b").open()
    with pytest.raises(ValueError, match="written whole"):
        (bucket / "b").open("wb")
    assert sha256_of(bucket / "a") == hashlib.sha256(content).hexdigest()
    assert has_sha256(bucket / "a", hashlib.sha256(content).hexdigest())
    (bucket / "a").download(tmp_path / "a")
    assert (tmp_path / "a").read_bytes() == content


def test_an_object_that_is_replaced_while_it_is_read_is_an_error(bucket):
    (bucket / "a").upload(b"1" * 5000)
    with (bucket / "a").open(buffering=1000) as file:
        assert file.read(10) == b"1" * 10
        (bucket / "a").upload(b"2" * 5000)
        with pytest.raises(OSError, match="it has changed meanwhile"):
            file.read()


def test_parquet_is_read_from_an_object(bucket):
    with whole_file(bucket / "a.parquet") as temporary:
        pq.write_table(pa.table({"text": ["a", "b"] * 100}), temporary, row_group_size=50)
    with (bucket / "a.parquet").open() as file:
        parquet = pq.ParquetFile(file)
        assert parquet.num_row_groups == 4
        assert parquet.read_row_group(3)["text"][1].as_py() == "b"


def test_large_objects_are_sent_in_parts(bucket, server, monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "_MOST_BYTES_AT_ONCE", 5 << 20)
    monkeypatch.setattr(storage, "_PART_BYTES", 5 << 20)
    content = bytes(range(256)) * (11 << 12)
    (tmp_path / "a").write_bytes(content)
    server.requests.clear()
    (bucket / "a").upload(tmp_path / "a")
    assert [method for method, _ in server.requests].count("PUT") == 3
    assert (bucket / "a").read_bytes() == content


def test_a_part_that_is_refused_is_sent_again(bucket, server, monkeypatch, tmp_path):
    monkeypatch.setattr(storage, "_MOST_BYTES_AT_ONCE", 5 << 20)
    monkeypatch.setattr(storage, "_PART_BYTES", 5 << 20)
    content = bytes(range(256)) * (11 << 12)
    (tmp_path / "a").write_bytes(content)
    (bucket / "b").upload(b"")
    server.requests.clear()
    server.before = lambda number, *_: 503 if number in (0, 2) else None
    (bucket / "a").upload(tmp_path / "a")
    assert (bucket / "a").read_bytes() == content


def test_files_and_directories_of_a_store_are_whole(bucket):
    write_whole(bucket / "text", "é")
    assert (bucket / "text").read_text() == "é"
    with pytest.raises(ZeroDivisionError), whole_file(bucket / "text") as temporary:
        temporary.write_text(str(1 // 0))
    assert (bucket / "text").read_text() == "é"
    folder = bucket / "new" / "directory"
    for names in ({"a", "last"}, {"b/c", "last"}):
        before = list(folder.rglob("*"))
        with whole_directory(folder, "last") as temporary:
            for name in names:
                (temporary / name).parent.mkdir(exist_ok=True)
                (temporary / name).write_text(name)
            assert list(folder.rglob("*")) == before
        assert {str(file.relative_to(folder)) for file in folder.rglob("*")} == names
    with pytest.raises(ZeroDivisionError), whole_directory(folder, "last") as temporary:
        (temporary / "d").write_text(str(1 // 0))
    with local_copy(folder) as copy:
        assert (copy / "b" / "c").read_text() == "b/c"
    with local_copy(bucket / "text") as copy:
        assert copy.name == "text"
        assert copy.read_text() == "é"
    remove_directory(folder, "last")
    assert list(bucket.rglob("*")) == [bucket / "text"]


def test_the_file_that_makes_a_directory_count_comes_last_and_goes_first(bucket, server):
    for _ in range(2):
        server.requests.clear()
        with whole_directory(bucket / "d", "b") as temporary:
            for name in "abc":
                (temporary / name).write_text(name)
        changes = [
            (method, path.rpartition("/")[2]) for method, path in server.requests if method != "GET"
        ]
        assert changes[-3:] == [("PUT", "a"), ("PUT", "c"), ("PUT", "b")]


def test_input_of_other_stores_is_read_by_beam():
    for url, package in {"hdfs://h/x": "[hadoop]", "azfs://a/c/x": "[azure]"}.items():
        with pytest.raises(UserError, match=rf"needs the package apache-beam\{package}"):
            match_with_beam(url)
        assert is_for_beam(url)
