import gzip
import json
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from launch.generate import describe
from pipeline.documents import BadRecord, Documents, ReadOptions
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.inputs import InputFormat
from pipeline.vocabulary import Vocabulary
from pipeline.word_segmentation import describe_segmenter


def names_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, corpus, write_as):
    """Five files of eight documents each, all in different formats."""
    folder = tmp_path_factory.mktemp("mixed")
    names = ["a.txt", "b.jsonl", "c.parquet", "d.jsonl.zst", "wiki_00.bz2"]
    for number, name in enumerate(names):
        write_as(folder / name, range(8 * number, 8 * number + 8))
    options = replace(
        corpus,
        input_patterns=[f"{folder}/{name}" for name in names],
        input_format=InputFormat.AUTO,
        output_dir=folder / "data",
    )
    return options, generate(options, PipelineOptions([]))


@pytest.fixture(scope="module")
def documents_of_first_pass(documents_of_shard):
    """The documents of all shards of the first pass."""

    def read(folder, manifest):
        shards = [shard for shard in manifest.shards if shard.pass_index == 0]
        return {
            document for shard in shards for document in documents_of_shard(folder / shard.name)
        }

    return read


def test_files_of_all_formats_form_one_corpus(mixed, documents_of_first_pass):
    options, manifest = mixed
    counts = manifest.statistics["corpus"]
    assert (counts["documents_read"], counts["sentences_read"]) == (40, 160)
    assert (counts["tokens"], counts["unknown_tokens"], counts["input_files"]) == (480, 0, 5)
    assert manifest.options["input_format"] == "auto"
    assert documents_of_first_pass(options.output_dir, manifest) == set(range(40))


@pytest.mark.parametrize("portion_bytes", [1, 300])
def test_the_order_and_cuts_of_files_in_all_formats_do_not_matter(
    portion_bytes, mixed, tmp_path, monkeypatch
):
    options, manifest = mixed
    monkeypatch.setattr("pipeline.portions.SMALLEST_PORTION_BYTES", portion_bytes)
    monkeypatch.setattr("pipeline.portions.LARGEST_PORTION_BYTES", portion_bytes)
    patterns = [*options.input_patterns[::-1], options.input_patterns[2]]
    again = replace(options, input_patterns=patterns, output_dir=tmp_path / "data")
    assert generate(again, PipelineOptions([])) == manifest
    # The plan holds the number of portions.
    for name in set(names_in(options.output_dir)) - {"plan.json"}:
        assert (tmp_path / "data" / name).read_bytes() == (options.output_dir / name).read_bytes()


def test_files_on_a_store_give_the_same_data_set(mixed, bucket, tmp_path, monkeypatch):
    options, manifest = mixed
    for pattern in options.input_patterns:
        (bucket / "corpus" / Path(pattern).name).upload(Path(pattern))
    again = replace(options, input_patterns=[f"{bucket}/corpus/"], output_dir=tmp_path / "data")
    monkeypatch.setattr("pipeline.portions.LARGEST_PORTION_BYTES", 300)
    assert generate(again, PipelineOptions([])) == manifest
    for name in set(names_in(options.output_dir)) - {"plan.json"}:
        assert (tmp_path / "data" / name).read_bytes() == (options.output_dir / name).read_bytes()


def test_files_of_all_formats_give_the_same_data_set_from_several_processes(
    mixed, two_processes, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.portions.SMALLEST_PORTION_BYTES", 100)
    options, manifest = mixed
    again = replace(options, output_dir=tmp_path / "data")
    assert generate(again, processes=two_processes) == manifest


@pytest.mark.parametrize(
    ("name", "input_format"),
    [
        ("corpus.jsonl", InputFormat.JSONL),
        ("corpus.parquet", InputFormat.PARQUET),
        ("wiki_00", InputFormat.WIKIEXTRACTOR),
        ("corpus.ndjson.zst", InputFormat.AUTO),
        ("corpus.csv", InputFormat.CSV),
    ],
)
def test_every_format_gives_the_same_documents(
    name, input_format, options, write_as, documents_of_first_pass, tmp_path
):
    write_as(tmp_path / name, range(40))
    other = replace(
        options, input_patterns=[f"{tmp_path}/{name}"], input_format=input_format, eval_fraction=0.0
    )
    manifest = generate(other, PipelineOptions([]))
    assert documents_of_first_pass(options.output_dir, manifest) == set(range(40))
    assert manifest.statistics["corpus"]["sentences_read"] == 160
    assert manifest.options["input_format"] == input_format


@pytest.mark.parametrize("documents", Documents)
def test_a_warning_asks_whether_each_line_is_a_document(documents, options, tmp_path, caplog):
    (tmp_path / "corpus.txt").write_text("W1 w2 w3. W4 w5.\n" * 12)
    options = replace(
        options,
        input_patterns=[f"{tmp_path}/corpus.txt"],
        input_format=InputFormat.AUTO,
        reading=ReadOptions(documents=documents),
        eval_fraction=0.0,
    )
    manifest = generate(options, PipelineOptions([]))
    are_lines = documents == Documents.LINES
    assert manifest.statistics["corpus"]["documents_read"] == (12 if are_lines else 1)
    assert manifest.statistics["corpus"]["sentences_read"] == (24 if are_lines else 12)
    assert ("--documents=lines" in caplog.text) != are_lines


def test_wikiextractor_files_give_the_same_shards_if_compressed(options, tmp_path):
    text = "".join(
        f'<doc id="{number}" url="u" title="w0">\nw0\n\nW{number} w1. W2.\nW3 w{number}.\n</doc>\n'
        for number in range(10)
    )
    manifests = []
    for name, content in (("wiki_00", text.encode()), ("wiki_00.gz", gzip.compress(text.encode()))):
        (tmp_path / name).write_bytes(content)
        wiki = replace(
            options,
            input_patterns=[str(tmp_path / name)],
            input_format=InputFormat.WIKIEXTRACTOR,
            output_dir=tmp_path / f"data of {name}",
            eval_fraction=0.0,
            num_shards=1,
        )
        manifests.append(generate(wiki, PipelineOptions([])))
    plain, compressed = manifests
    assert plain.statistics["corpus"]["sentences_read"] == 30
    assert plain.shards == compressed.shards


def test_the_manifest_counts_skipped_records_and_short_documents(options, tmp_path):
    texts = [f"w{number} w{number} w{number}\n" * 4 for number in range(30)]
    lines = [json.dumps({"body": text}) for text in (*texts, "w1", "\u200b" * 9)]
    (tmp_path / "corpus.jsonl").write_text("\n".join([*lines[:7], "{", "[]", *lines[7:]]))
    reading = ReadOptions("body", on_bad_record=BadRecord.SKIP, min_document_characters=3)
    other = replace(
        options,
        input_patterns=[f"{tmp_path}/corpus.jsonl"],
        input_format=InputFormat.AUTO,
        reading=reading,
    )
    manifest = generate(other, PipelineOptions([]))
    counts = manifest.statistics["corpus"]
    assert counts["records_skipped"] == 2
    assert counts["documents_read"] == 32
    assert counts["documents_too_short"] == counts["documents_without_tokens"] == 1
    summary = describe(manifest, options.output_dir).splitlines()
    assert summary[2:5] == [
        "  left out   2 records that could not be read or had no text",
        "  left out   1 documents shorter than --min_document_characters",
        "  left out   1 documents without tokens",
    ]
    assert counts["documents_tokenized"] == 30
    assert asdict(reading).items() <= manifest.options.items()


def test_halves_of_surrogate_pairs_become_unknown_tokens(options, tmp_path):
    text = r"w1 \ud800 w2\nw3\udfff 我\udc00们 \ud83d\nw4 w5"
    lines = [f'{{"text": "{text} w{number}"}}\n' for number in (6, 7, 8, 9, 6, 6)]
    (tmp_path / "corpus.jsonl").write_text("".join(lines))
    other = replace(
        options,
        input_patterns=[f"{tmp_path}/corpus.jsonl"],
        input_format=InputFormat.AUTO,
        drop_duplicates=True,
        word_segmenter="jieba",
        eval_fraction=0.0,
        num_shards=1,
    )
    counts = generate(other, PipelineOptions([])).statistics["corpus"]
    assert (counts["documents_read"], counts["documents_duplicate"]) == (6, 2)
    # Unknown: the half beside w1, w3 with its half, both ideographs, the half between, the last.
    assert counts["unknown_tokens"] == 6 * 6


# The words of Chinese.

SENTENCE = "我来到北京清华大学"
JIEBAS_WORDS = ["我", "来到", "北京", "清华大学"]


@pytest.fixture
def chinese(options, tmp_path, write_vocabulary):
    (tmp_path / "chinese.txt").write_text((f"{SENTENCE}\n" * 6 + "\n") * 20)
    return replace(
        options,
        input_patterns=[f"{tmp_path}/chinese.txt"],
        vocab_file=write_vocabulary(*SENTENCE),
        eval_fraction=0.0,
        num_shards=1,
        instances=replace(options.instances, max_seq_length=40, max_predictions_per_seq=12),
    )


@pytest.fixture
def masked_together(records_of):
    """Lists which pieces are masked, for every complete word of jieba's in the records."""

    def find(options, manifest):
        tokens = Vocabulary(options.vocab_file).tokens
        found = []
        for shard in manifest.shards:
            for example in records_of(options.output_dir / shard.name):
                features = example.features.feature
                text = [tokens[number] for number in features["input_ids"].int64_list.value]
                weights = features["masked_lm_weights"].float_list.value
                positions = features["masked_lm_positions"].int64_list.value[: int(sum(weights))]
                labels = features["masked_lm_ids"].int64_list.value
                for position, label in zip(positions, labels, strict=False):
                    text[position] = tokens[label]
                for word in JIEBAS_WORDS:
                    for start in range(len(text) - len(word)):
                        if text[start : start + len(word)] == list(word):
                            columns = range(start, start + len(word))
                            found.append([column in positions for column in columns])
        return found

    return find


@pytest.mark.parametrize("segmenter", ["jieba", "my_words:of"])
def test_the_pieces_of_a_chinese_word_are_masked_together(
    segmenter, chinese, masked_together, tmp_path, monkeypatch
):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_words.py").write_text(f"def of(text):\n    return {JIEBAS_WORDS}\n")
    with_words = replace(chinese, word_segmenter=segmenter)
    manifest = generate(with_words, PipelineOptions([]))
    assert manifest.options["word_segmenter"] == describe_segmenter(segmenter)
    found = masked_together(with_words, manifest)
    assert len(found) > 500
    assert all(len(set(word)) == 1 for word in found)
    assert 50 < sum(all(word) for word in found) < len(found) / 2


def test_without_a_segmenter_ideographs_are_masked_independently(chinese, masked_together):
    found = masked_together(chinese, generate(chinese, PipelineOptions([])))
    assert sum(len(set(word)) > 1 for word in found) > 50


def test_words_that_do_not_match_the_text_are_an_error(chinese, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "wrong_words.py").write_text("def of(text):\n    return text.split('京')\n")
    with pytest.raises(UserError, match="do not match the text, starting at '京清华大学'"):
        generate(replace(chinese, word_segmenter="wrong_words:of"), PipelineOptions([]))


def test_a_segmenter_that_cannot_be_loaded_is_reported_before_anything_is_written(chinese):
    with pytest.raises(UserError, match="--word_segmenter=no_module:cut"):
        generate(replace(chinese, word_segmenter="no_module:cut"), PipelineOptions([]))
    assert not chinese.output_dir.exists()
