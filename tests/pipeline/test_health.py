"""The health check finds what is out of bounds, and names the flag that helps."""

from dataclasses import replace
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline.documents import Document
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.health import case_line, health_lines, health_of_records
from pipeline.manifest import Manifest
from pipeline.options import GenerateOptions, InstanceOptions
from pipeline.sample import Sample

CORPUS = {
    "documents_tokenized": 20,
    "sentences_read": 100,
    "sentences_without_tokens": 0,
    "tokens": 1000,
    "unknown_tokens": 50,
    "lines_read": 100,
    "lines_with_invalid_utf8": 1,
}
TRAIN = {
    "instances": 20,
    "tokens": 1060,
    "tokens_truncated": 250,
    "random_next": 10,
    "masked": 80,
    "share_masked": 80 / 1060,
    "instances_without_mask": 1,
}


def sample_of(*sentences):
    return Sample([Document("a.txt", 0, 0, list(sentences))], sum(map(len, sentences)))


@pytest.fixture
def options_of(write_vocabulary):
    """Options with a vocabulary of these tokens."""

    def options(*tokens, **others):
        return GenerateOptions(["a"], write_vocabulary(*tokens), Path("data"), **others)

    return options


@pytest.fixture
def lines_of(options_of):
    """The lines for statistics that differ from sound ones."""

    def lines(*sentences, tokens=("a",), corpus=(), train=(), corpora=(), **others):
        options, sample = options_of(*tokens, **others), sample_of(*sentences)
        statistics = {
            "corpus": CORPUS | dict(corpus),
            "train": TRAIN | dict(train),
            "corpora": dict(corpora),
        }
        return health_lines(statistics, options, sample, case_line(sample, options))

    return lines


def test_shares_at_their_bounds_are_sound(lines_of):
    assert lines_of("a a") == []


@pytest.mark.parametrize(
    ("part", "changed", "line"),
    [
        ("corpus", {"unknown_tokens": 51}, "5.1% of the tokens are [UNK]; usual is below 5%: "),
        ("corpus", {"lines_with_invalid_utf8": 2}, "2.0% of the lines have invalid UTF-8"),
        ("train", {"masked": 79}, "of the tokens are masked; usual is 15.0%"),
        ("train", {"instances_without_mask": 2}, "10.0% of the instances have no mask"),
        ("train", {"random_next": 1}, "5.0% of the instances have a random B; usual is about 50%"),
        ("train", {"random_next": 19}, "95.0% of the instances have a random B"),
        ("train", {"tokens_truncated": 251}, "20.1% of the tokens are cut off; usual is below 20%"),
    ],
)
def test_each_share_out_of_bounds_is_a_line(lines_of, part, changed, line):
    (found,) = lines_of("a a", **{part: changed})
    assert line in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("tokens", "sentence", "others", "advice"),
    [
        (["ACG", "CGT"], "ACG CGT", {}, "--nodo_lower_case"),
        (["acg"], "ACG ACG", {"do_lower_case": False}, "--do_lower_case"),
        (["\u00e9te"], "\u00e9te", {}, "--nostrip_accents"),
        (["ete"], "\u00e9te", {"strip_accents": False}, "--strip_accents"),
        (["\u00c9te"], "\u00c9te", {}, "--nodo_lower_case"),
        (["a", "##a"], "a" * 201, {}, "more than 200 characters"),
        (["a"], "\u0939\u093f\u0928\u094d\u0926\u0940", {}, "clozemill vocab"),
        (["a"], "a", {}, "clozemill vocab"),
    ],
)
def test_the_advice_on_unknown_tokens_fits_the_text(lines_of, tokens, sentence, others, advice):
    lines = lines_of(sentence, tokens=tokens, corpus={"unknown_tokens": 1000}, **others)
    assert lines[0].startswith("100.0% of the tokens are [UNK]")
    assert advice in lines[0]


def test_a_few_words_that_are_too_long_can_be_much_of_the_text(lines_of):
    (line,) = lines_of("a " * 100 + "a" * 201 + " ", tokens=("a", "##a"))
    assert line.startswith("66.8% of the characters are [UNK]; usual is below 5%: ")
    # Its parts are short enough.
    assert lines_of("a " * 100 + "a," * 101, tokens=("a", "##a", ",")) == []


CASED = ("The", "the", "Rain", "rain", "##s", "N", "##B", "##A")
UNCASED = ("the", "rain", "##s", "n", "##b", "##a")


@pytest.mark.parametrize(
    ("tokens", "sentence", "do_lower_case", "advice"),
    [
        (CASED, "The Rain the rains", True, "the vocabulary is cased, so give --nodo_lower_case"),
        (CASED, "他在NBA打球", True, "the vocabulary is cased, so give --nodo_lower_case"),
        (UNCASED, "The Rain", False, "the vocabulary is uncased, so give --do_lower_case"),
        (CASED, "The Rain", False, None),
        (UNCASED, "The Rain", True, None),
        (UNCASED, "他在NBA打球", True, None),
        # The text has no capitals of its own.
        (CASED, "the rain", True, None),
        (UNCASED, "the rain", False, None),
        (CASED, "\u0e1d\u0e19\u0e15\u0e01 \u96e8 \u05d2\u05e9\u05dd", True, None),
        # Its capitals are so rare that they do not matter.
        (CASED, "rain " * 1000 + "The", True, None),
        # Neither case is in the vocabulary.
        (UNCASED, "Sun Moon", False, None),
        (CASED, "Sun Moon", True, None),
    ],
)
def test_the_capitals_of_the_text_tell_whether_the_vocabulary_has_its_case(
    options_of, tokens, sentence, do_lower_case, advice
):
    line = case_line(sample_of(sentence), options_of(*tokens, do_lower_case=do_lower_case))
    assert line is None if advice is None else line.endswith(advice)


def test_a_mask_that_p_cuts_gets_the_number_to_give(lines_of):
    (line,) = lines_of("a", train={"masked": 20}, instances=InstanceOptions(512, 20))
    assert line.endswith("--max_predictions_per_seq=20 cuts it, so give 76")


@pytest.mark.parametrize(
    ("random_next", "corpus", "sentence", "others", "advice"),
    [
        (0, {"documents_tokenized": 1}, "a", {}, "give more"),
        (0, {"text_files_without_blank_line": 1}, "a", {}, "--documents=lines"),
        (0, {}, "a", {"num_shards": 15}, "decrease --num_shards"),
        (20, {"documents_tokenized": 100}, "a a", {}, "remove the blank lines"),
        (20, {}, "It is so. It was not so.", {}, "--sentences=split"),
    ],
)
def test_the_advice_on_random_next_sentences_fits(
    lines_of, random_next, corpus, sentence, others, advice
):
    train = {"random_next": random_next}
    (line,) = lines_of(sentence, corpus=corpus, train=train, **others)
    assert advice in line


@pytest.mark.parametrize(
    ("corpus", "random_next", "num_lines"),
    [({}, 0, 0), ({}, 9, 0), ({"documents_tokenized": 1}, 0, 1), ({"sentences_read": 20}, 9, 1)],
)
def test_among_few_instances_only_a_certain_cause_counts(lines_of, corpus, random_next, num_lines):
    few = {"instances": 9, "tokens": 1027, "random_next": random_next, "instances_without_mask": 0}
    assert len(lines_of("a", corpus=corpus, train=few)) == num_lines


def test_running_text_that_is_cut_off_is_to_be_split(lines_of):
    (line,) = lines_of("It is so. It was not so.", train={"tokens_truncated": 900})
    assert line.endswith("the lines are running text, so give --sentences=split")


@pytest.mark.parametrize(
    ("part", "changed", "says"),
    [
        ("corpus", {}, []),
        ("corpus", {"unknown_tokens": 51}, ["5.1% of the tokens are [UNK]"]),
        ("train", {"instances_without_mask": 2}, ["10.0% of the instances have no mask"]),
        ("train", {"random_next": 0}, ["0.0% of the instances have a random B"]),
        ("train", {"random_next": 0, "instances": 9, "instances_without_mask": 0}, []),
    ],
)
def test_records_of_others_are_checked_for_what_they_show(part, changed, says):
    statistics = {"corpus": CORPUS, "train": TRAIN}
    lines = health_of_records(statistics | {part: statistics[part] | changed})
    assert [line.partition(";")[0] for line in lines] == says
    assert all("make the records again" in line for line in lines)


def test_a_strict_run_ends_before_its_manifest_and_keeps_its_shards(
    options, write_vocabulary, caplog
):
    strict = replace(options, vocab_file=write_vocabulary("other"), strict=True)
    for _ in range(2):
        with pytest.raises(UserError, match="--strict"):
            generate(strict, PipelineOptions([]))
        assert not (options.output_dir / "manifest.json").exists()
    assert "100.0% of the tokens are [UNK]" in caplog.text
    shards = {path: path.stat().st_mtime_ns for path in options.output_dir.glob("*.tfrecord")}
    assert len(shards) == 7

    manifest = generate(replace(strict, strict=False), PipelineOptions([]))
    assert manifest.health[0].startswith("100.0% of the tokens are [UNK]")
    assert {path: path.stat().st_mtime_ns for path in shards} == shards
    assert manifest == Manifest.read(options.output_dir)
    with pytest.raises(UserError, match="--strict"):
        generate(strict, PipelineOptions([]))
    assert generate(replace(strict, strict=False), PipelineOptions([])) == manifest


def test_words_that_are_longer_than_their_masks_are_masked(tmp_path, write_vocabulary):
    text = tmp_path / "dna.txt"
    text.write_text("\n\n".join("\n".join(["ACGT" * 12] * 4) for _ in range(8)))
    manifest = generate(
        GenerateOptions(
            [str(text)],
            write_vocabulary(*"ACGT", *(f"##{base}" for base in "ACGT")),
            tmp_path / "data",
            do_lower_case=False,
            instances=InstanceOptions(dupe_factor=1),
        ),
        PipelineOptions([]),
    )
    train = manifest.statistics["train"]
    assert train["instances_without_mask"] == 0
    assert train["share_masked"] == pytest.approx(0.15, abs=0.01)
    assert manifest.health == []


def with_pairs(sentence_pairs):
    return {"instances": InstanceOptions(sentence_pairs=sentence_pairs)}


@pytest.mark.parametrize(
    ("train", "sentence", "line"),
    [
        ({"swapped": 1}, "a a", "5.0% of the pairs are swapped; usual is about 50%"),
        ({"swapped": 19}, "a a", "95.0% of the pairs are swapped"),
        ({"chunks_without_next": 6}, "a a", "23.1% of the pairs are left out, because their docum"),
        ({"chunks_without_next": 6}, "A one. A two. A three.", "so give --sentences=split"),
    ],
)
def test_sentence_order_has_shares_of_its_own(lines_of, train, sentence, line):
    order, sound = with_pairs("order"), {"swapped": 10, "chunks_without_next": 5, "random_next": 0}
    assert lines_of(sentence, train=sound, **order) == []
    (found,) = lines_of(sentence, train=sound | train, **order)
    assert line in found
    few = {"instances": 9, "tokens": 1027, "instances_without_mask": 0, "swapped": 0}
    few["chunks_without_next"] = 2
    assert lines_of(sentence, train=sound | few, **order) == []


def test_single_segments_have_no_share_of_pairs_and_two_special_tokens(lines_of):
    alone, whole = with_pairs("none"), {"tokens": 1040, "chunks_without_next": 0, "random_next": 0}
    # Without [CLS] and [SEP], each instance has 50 tokens.
    assert lines_of("a a", train=whole | {"tokens_truncated": 250}, **alone) == []
    (line,) = lines_of("a a", train=whole | {"tokens_truncated": 251}, **alone)
    assert "20.1% of the tokens are cut off" in line


def test_unknown_tokens_of_one_corpus_of_a_mixture_have_a_line(lines_of):
    corpora = {
        "large": {"tokens": 950, "unknown_tokens": 0, "documents_read": [9, 9]},
        "small": {"tokens": 50, "unknown_tokens": 40, "documents_read": [0, 1]},
        "empty": {"tokens": 0, "unknown_tokens": 0, "documents_read": [1, 0]},
    }
    (line,) = lines_of(corpora=corpora)
    assert line.startswith("80.0% of the tokens of the corpus small are [UNK]; usual is below 5%")
    assert "--vocab_file" in line


def test_a_corpus_of_a_mixture_that_no_pass_reads_has_a_line(lines_of):
    facts = {"tokens": 950, "unknown_tokens": 0}
    corpora = {
        "once": facts | {"documents_read": [0, 1]},
        "never": facts | {"documents_read": [0, 0]},
    }
    (line,) = lines_of(corpora=corpora)
    assert line.startswith("no pass reads the corpus never")
