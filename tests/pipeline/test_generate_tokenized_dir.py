from dataclasses import replace

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

import pipeline.stages
from pipeline.documents import BadRecord, ReadOptions, Sentences
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.inputs import InputFormat
from pipeline.options import InstanceOptions

LONGER_INSTANCES = InstanceOptions(
    max_seq_length=32,
    max_predictions_per_seq=3,
    short_seq_prob=0.0,
    dupe_factor=2,
    random_seed=3,
)


@pytest.fixture(scope="module")
def tokenized_dir(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenized")
    options = replace(corpus, output_dir=folder / "data", tokenized_dir=folder / "tokenized")
    generate(options, PipelineOptions([]))
    return folder / "tokenized"


@pytest.mark.parametrize(
    ("change", "difference"),
    [
        ({"reading": ReadOptions(text_field="body")}, "text_field 'text', not 'body'"),
        (
            {"reading": ReadOptions(min_document_characters=2)},
            "min_document_characters 0, not 2",
        ),
        ({"reading": ReadOptions(sentences=Sentences.SPLIT)}, "sentences None, not 'split'"),
        (
            {"reading": ReadOptions(on_bad_record=BadRecord.SKIP)},
            "on_bad_record 'fail', not 'skip'",
        ),
        ({"word_segmenter": "jieba"}, "word_segmenter None, not 'jieba "),
        ({"strip_accents": False}, "strip_accents None, not False"),
        ({"input_format": InputFormat.JSONL}, "different input files"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_a_tokenized_corpus_made_with_other_options_is_refused(
    change, difference, options, tokenized_dir
):
    other = replace(options, tokenized_dir=tokenized_dir, **change)
    with pytest.raises(UserError) as raised:
        generate(other, PipelineOptions([]))
    assert f"{tokenized_dir} holds a tokenized corpus made with {difference}" in str(raised.value)
    assert not options.output_dir.exists()


@pytest.mark.parametrize(
    "change",
    [
        {"drop_duplicates": True},
        {"instances": LONGER_INSTANCES},
    ],
    ids=["duplicates", "instances"],
)
def test_a_tokenized_corpus_can_be_reused_without_its_text(
    change, options, tokenized_dir, tmp_path, monkeypatch
):
    def no_text(*_):
        raise AssertionError("the text was read")

    fresh = generate(replace(options, output_dir=tmp_path / "fresh", **change), PipelineOptions([]))
    monkeypatch.setattr(pipeline.stages, "read_documents", no_text)
    reused = replace(options, tokenized_dir=tokenized_dir, **change)
    assert generate(reused, PipelineOptions([])) == fresh
