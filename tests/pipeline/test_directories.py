import pytest

from pipeline.directories import Directories
from pipeline.errors import UserError


@pytest.fixture
def vocab_file(tmp_path):
    path = tmp_path / "some_vocab.txt"
    path.write_text("[PAD]\n")
    return path


def test_prepared_directories_hold_the_vocabulary_and_can_be_discarded(tmp_path, vocab_file):
    directories = Directories(tmp_path / "new" / "data")
    directories.prepare(vocab_file, {}, {}, overwrite=False)
    assert directories.tokenized.is_dir()
    assert directories.receipts.is_dir()
    assert directories.unfinished_shards.is_dir()
    assert directories.vocabulary.read_bytes() == vocab_file.read_bytes()
    (directories.output / "train-00000-of-00001.tfrecord").write_text("unfinished")
    directories.discard()
    assert list(directories.output.iterdir()) == []


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_folder_of_other_files_is_refused_and_left_alone(tmp_path, vocab_file, overwrite):
    (tmp_path / "other" / "sub").mkdir(parents=True)
    for name in ("vocab.txt", "notes.txt", "train-1-of-2.tfrecord"):
        (tmp_path / "other" / name).write_text(name)
    with pytest.raises(UserError, match="are not a data set"):
        Directories(tmp_path / "other").prepare(vocab_file, {}, {}, overwrite)
    assert sorted(path.name for path in (tmp_path / "other").iterdir()) == [
        *("notes.txt", "sub", "train-1-of-2.tfrecord", "vocab.txt")
    ]


def test_discarding_keeps_files_that_do_not_belong_to_a_data_set(tmp_path, vocab_file):
    directories = Directories(tmp_path / "data")
    directories.prepare(vocab_file, {}, {}, overwrite=False)
    (directories.output / "notes.txt").write_text("mine")
    directories.discard()
    assert [path.name for path in directories.output.iterdir()] == ["notes.txt"]


def test_an_existing_empty_folder_is_used(tmp_path, vocab_file):
    (tmp_path / "data").mkdir()
    directories = Directories(tmp_path / "data")
    directories.prepare(vocab_file, {}, {}, overwrite=False)
    assert directories.vocabulary.exists()


@pytest.mark.parametrize("output", ["some_vocab.txt", "some_vocab.txt/data"])
def test_a_file_is_refused_as_output_directory(tmp_path, vocab_file, output):
    with pytest.raises(UserError, match="cannot write to"):
        Directories(tmp_path / output).prepare(vocab_file, {}, {}, overwrite=False)
    assert vocab_file.read_text() == "[PAD]\n"


def test_a_foreign_folder_is_never_mistaken_for_a_data_set(tmp_path, vocab_file):
    for name in ("in_progress/novel.txt", "manifest.json", "report.html"):
        (tmp_path / "data" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "data" / name).write_text("precious")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="are not a data set"):
            Directories(tmp_path / "data").prepare(vocab_file, {}, {}, overwrite)
    assert len(list((tmp_path / "data").rglob("*"))) == 4


def test_foreign_files_are_refused_as_tokenized_corpus(tmp_path, vocab_file):
    (tmp_path / "tokenized").mkdir()
    (tmp_path / "tokenized" / "split-00000.parquet").write_text("precious")
    directories = Directories(tmp_path / "data", tmp_path / "tokenized")
    with pytest.raises(UserError, match="--tokenized_dir"):
        directories.prepare(vocab_file, {}, {}, overwrite=True)
    assert (tmp_path / "tokenized" / "split-00000.parquet").read_text() == "precious"
