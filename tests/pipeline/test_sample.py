import gzip
from dataclasses import replace

import pytest

from pipeline import sample
from pipeline.documents import ReadOptions
from pipeline.inputs import match_files
from pipeline.portions import plan_portions


def as_usual(_corpus):
    return ReadOptions()


@pytest.fixture
def portions_of(tmp_path):
    """Writes files of documents and cuts them into portions."""

    def portions(*files, portion_bytes=None, name="{}.txt"):
        for number, documents in enumerate(files):
            text = "\n\n".join(documents).encode()
            path = tmp_path / name.format(number)
            path.write_bytes(gzip.compress(text) if path.suffix == ".gz" else text)
        found = match_files([f"{tmp_path}/*"])
        return plan_portions(found, portion_bytes), sum(file.text_bytes for file in found)

    return portions


def test_a_small_corpus_is_its_own_sample(portions_of):
    portions, text_bytes = portions_of(["one\ntwo", "three"], ["four"])
    found = sample.take_sample(portions, as_usual)
    assert [document.sentences for document in found.documents] == [
        ["one", "two"],
        ["three"],
        ["four"],
    ]
    assert found.text_bytes == text_bytes


@pytest.mark.parametrize("name", ["{}.txt", "{}.txt.gz"])
def test_a_large_corpus_is_sampled_in_many_places(portions_of, monkeypatch, name):
    monkeypatch.setattr(sample, "_MOST_CHARACTERS", 1000)
    files = [[f"a{number} " * 5 for _ in range(200)] for number in range(20)]
    portions, text_bytes = portions_of(*files, portion_bytes=500, name=name)
    found = sample.take_sample(portions, as_usual)
    characters = sum(len(document.sentences[0]) for document in found.documents)
    assert 900 <= characters <= 1000
    assert 5 <= len({document.file for document in found.documents}) <= 16
    if name == "{}.txt":
        # Of each document, two line ends and a space are not in the sample.
        assert found.text_bytes == pytest.approx(characters * 18 / 14, rel=0.2)
    assert found.text_bytes < text_bytes
    assert sample.take_sample(portions, as_usual) == found


def test_a_long_document_is_cut_off(portions_of, monkeypatch):
    monkeypatch.setattr(sample, "_MOST_CHARACTERS", 100)
    portions, _ = portions_of(["a" * 30 + "\n" + "b" * 1000 + "\n" + "c" * 1000])
    found = sample.take_sample(portions, as_usual)
    assert [document.sentences for document in found.documents] == [["a" * 30, "b" * 70]]
    assert found.text_bytes == 101


def test_other_columns_of_a_table_count_as_text_that_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(sample, "_MOST_CHARACTERS", 1000)
    rows = [f'{number},"a\n""b""",{"x" * 90}\n' for number in range(1000)]
    (tmp_path / "a.csv").write_text("id,text,rest\n" + "".join(rows))
    found = sample.take_sample(plan_portions(match_files([f"{tmp_path}/a.csv"])), as_usual)
    assert len(found.documents) == 250
    assert found.text_bytes == pytest.approx(sum(map(len, rows[:250])), rel=0.02)


def test_words_are_counted(portions_of):
    portions, _ = portions_of(["the cat the 猫猫"])
    found = sample.take_sample(portions, as_usual)
    assert replace(found).words == {"the": 2, "cat": 1, "猫": 2}
