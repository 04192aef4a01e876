"""Whole data sets of a mixture. Each document is one word that no other document has."""

import json
import shutil
from collections import Counter
from dataclasses import replace

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

import pipeline.mixture_stages
from pipeline.documents import Documents
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.inspection import pieces_of, read_sequences
from pipeline.manifest import CORPORA, DataSet, Manifest
from pipeline.mixtures import Corpus, Mixture
from pipeline.sentence_pairs import SentencePairs
from pipeline.verification import verify
from pipeline.vocabulary import Vocabulary

CORPUS_OF = {**dict.fromkeys(range(8), "few"), **dict.fromkeys(range(8, 40), "many")}
TOKENS = 12  # of each document


@pytest.fixture(scope="module")
def mixed(tmp_path_factory, corpus, write_as):
    """Four fifths of a small corpus and one of a larger one, in three passes.

    Each instance is a whole document.
    """
    folder = tmp_path_factory.mktemp("mixed")
    write_as(folder / "few.jsonl", range(8))
    write_as(folder / "many1.txt", range(8, 25))
    write_as(folder / "many2.parquet", range(25, 40))
    return replace(
        corpus,
        input_patterns=[],
        output_dir=folder / "data",
        eval_fraction=0.3,
        instances=replace(
            corpus.instances, dupe_factor=3, sentence_pairs=SentencePairs.NONE, random_seed=3
        ),
        mixture=Mixture(
            (
                Corpus("many", [f"{folder}/many*"], weight=1),
                Corpus("few", [f"{folder}/few*"], weight=4),
            )
        ),
    )


@pytest.fixture(scope="module")
def mixed_data(mixed):
    return DataSet(mixed.output_dir, generate(mixed, PipelineOptions([])))


def documents_of_pass(data_set, documents_of_shard, pass_index):
    """How often each document is in the train shards of a pass."""
    return sum(
        (
            documents_of_shard(data_set.path_of(shard))
            for shard in data_set.manifest.shards_of("train")
            if shard.pass_index == pass_index
        ),
        Counter(),
    )


def by_corpus(documents):
    counts = Counter()
    for document, count in documents.items():
        counts[CORPUS_OF[document]] += count
    return counts


def test_each_pass_has_the_shares_by_whole_documents(mixed_data, documents_of_shard):
    facts = mixed_data.manifest.statistics[CORPORA]
    total = sum(each["train_documents"] for each in facts.values())
    for pass_index in range(3):
        read = documents_of_pass(mixed_data, documents_of_shard, pass_index)
        counts = by_corpus(read)
        assert abs(counts["few"] - 0.8 * total) <= 1
        assert abs(counts["many"] - 0.2 * total) <= 1
        for name, own in facts.items():
            assert own["documents_read"][pass_index] == counts[name]
            assert own["tokens_read"][pass_index] == counts[name] * TOKENS
            assert own["shares_asked"] == [{"few": 0.8, "many": 0.2}[name]] * 3
            assert own["shares_reached"][pass_index] == pytest.approx(
                counts[name] / counts.total(), abs=1e-6
            )
        # Documents of one corpus are repeated equally often, up to one.
        of_few = [read[number] for number in range(8) if read[number]]
        assert max(of_few) - min(of_few) <= 1


def test_passes_take_other_parts_of_a_large_corpus(mixed_data, documents_of_shard):
    seen = sum((documents_of_pass(mixed_data, documents_of_shard, p) for p in range(3)), Counter())
    of_many = Counter({number: seen[number] for number in range(8, 40) if seen[number]})
    facts = mixed_data.manifest.statistics[CORPORA]["many"]
    assert of_many.total() == sum(facts["documents_read"]) < facts["train_documents"]
    assert set(of_many.values()) == {1}


def test_eval_documents_are_apart_by_corpus_and_never_repeated(mixed_data, documents_of_shard):
    train = sum((documents_of_pass(mixed_data, documents_of_shard, p) for p in range(3)), Counter())
    evaluated = Counter()
    assert list(mixed_data.manifest.corpora) == ["few", "many"]
    for name, shards in mixed_data.manifest.corpora.items():
        held_out = sum((documents_of_shard(mixed_data.path_of(s)) for s in shards), Counter())
        assert held_out
        assert {CORPUS_OF[number] for number in held_out} == {name}
        facts = mixed_data.manifest.statistics[CORPORA][name]
        assert facts["eval_documents"] == facts["eval_instances"] == len(held_out)
        assert facts["documents"] == facts["train_documents"] + facts["eval_documents"]
        assert facts["tokens"] == facts["documents"] * TOKENS
        evaluated += held_out
    assert set(evaluated.values()) == {1}
    assert not set(evaluated) & set(train)
    shards = [shard for members in mixed_data.manifest.corpora.values() for shard in members]
    assert shards == mixed_data.manifest.shards_of("eval")


def test_manifest_plan_and_report_tell_of_the_mixture(mixed, mixed_data):
    manifest = Manifest.read(mixed.output_dir)
    assert manifest.format_version == 2
    assert manifest.options["mixture"] == {"weights": {"few": 4, "many": 1}}
    assert manifest.options["corpora"]["few"]["text_field"] == "text"
    assert "text_field" not in manifest.options
    plan = json.loads((mixed.output_dir / "plan.json").read_text())
    assert plan["mixture"] == {"weights": {"few": 4, "many": 1}}
    report = " ".join((mixed.output_dir / "report.html").read_text().split())
    for text in (
        "Corpora of the mixture",
        "mixture: weights",
        "few 4, many 1",
        "of 2 corpora, repeats included",
        '<td class="number">80.0%</td>',
    ):
        assert text in report
    assert list(verify(mixed_data)) == []


def test_the_same_command_again_verifies(mixed, mixed_data):
    assert generate(mixed, PipelineOptions([])) == mixed_data.manifest


def test_workers_portions_and_the_order_of_corpora_change_nothing(
    mixed, mixed_data, two_processes, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.portions.SMALLEST_PORTION_BYTES", 100)
    monkeypatch.setattr("pipeline.portions.LARGEST_PORTION_BYTES", 100)
    other_order = Mixture(mixed.mixture.corpora[::-1])
    again = replace(mixed, output_dir=tmp_path / "data", mixture=other_order)
    assert generate(again, processes=two_processes) == mixed_data.manifest
    for shard in mixed_data.manifest.shards:
        content = (tmp_path / "data" / shard.name).read_bytes()
        assert content == mixed_data.path_of(shard).read_bytes()


def test_other_weights_reuse_the_tokenized_corpus(mixed, tmp_path, monkeypatch):
    tempered = Mixture(
        tuple(replace(each, weight=None) for each in mixed.mixture.corpora), (1.0, 0.5, 0.0)
    )
    manifests = []
    for name, mixture in (("first", mixed.mixture), ("second", tempered)):
        options = replace(
            mixed,
            output_dir=tmp_path / name,
            tokenized_dir=tmp_path / "tokenized",
            mixture=mixture,
        )
        manifests.append(generate(options, PipelineOptions([])))
        monkeypatch.setattr("pipeline.stages.tokenize_documents", None)
    facts = manifests[1].statistics[CORPORA]
    assert facts["many"]["repeats"][0] == 1
    assert facts["many"]["shares_asked"][2] == 0.5
    assert facts["many"]["shares_reached"][2] == pytest.approx(0.5, abs=0.05)
    assert manifests[0].options["mixture"] != manifests[1].options["mixture"]


def test_duplicates_do_not_count(mixed, write_as, documents_of_shard, tmp_path):
    """Of documents in both corpora, that of the first name is kept. A longer one is a near copy."""
    write_as(tmp_path / "a.txt", [0, 1, 2, 3, 3, 3, 3])
    write_as(tmp_path / "b.txt", [*range(8, 20), 0])
    for name, longer in (("a", "w3"), ("b", "w1")):
        with (tmp_path / f"{name}.txt").open("a") as file:
            file.write("\n" + f"{longer} {longer} {longer}\n" * 5)
    mixture = Mixture(
        (
            Corpus("few", [f"{tmp_path}/a.txt"], weight=1),
            Corpus("many", [f"{tmp_path}/b.txt"], weight=1),
        )
    )
    options = replace(
        mixed,
        mixture=mixture,
        output_dir=tmp_path / "data",
        eval_fraction=0.0,
        drop_duplicates=True,
        drop_near_duplicates=0.8,
    )
    data_set = DataSet(options.output_dir, generate(options, PipelineOptions([])))
    facts = data_set.manifest.statistics[CORPORA]
    assert [facts[name]["train_documents"] for name in ("few", "many")] == [4, 12]
    for kind, (of_few, of_many) in {"duplicate": (3, 1), "near_duplicate": (1, 1)}.items():
        assert facts["few"][f"documents_{kind}"] == of_few
        assert facts["many"][f"documents_{kind}"] == of_many
        corpus = data_set.manifest.statistics["corpus"]
        assert corpus[f"documents_{kind}"] == of_few + of_many
    for pass_index in range(3):
        read = documents_of_pass(data_set, documents_of_shard, pass_index)
        assert [read[number] for number in range(4)] == [2, 2, 2, 2]
        assert sum(read[number] for number in range(8, 20)) == 8
        assert read.total() == 16
    # Without an evaluation split, corpora have no eval shards.
    assert data_set.manifest.corpora == {"few": [], "many": []}


def test_a_random_b_is_of_the_same_corpus_and_no_copy(mixed, tmp_path):
    instances = replace(mixed.instances, sentence_pairs=SentencePairs.NEXT)
    options = replace(mixed, output_dir=tmp_path / "data", instances=instances, num_shards=1)
    data_set = DataSet(options.output_dir, generate(options, PipelineOptions([])))
    vocabulary = Vocabulary(data_set.vocabulary)
    labels = Counter()
    for shard in data_set.manifest.shards:
        for (sequence,) in read_sequences(data_set, shard):
            words = {"A": set(), "B": set()}
            for piece in pieces_of(sequence, vocabulary):
                if piece.original.startswith("w"):
                    words[piece.segment].add(int(piece.original[1:]))
            ((a,), (b,)) = words.values()
            is_random = bool(sequence["next_sentence_labels"])
            assert (a != b) == is_random
            assert CORPUS_OF[a] == CORPUS_OF[b]
            labels[is_random] += 1
    assert min(labels[True], labels[False]) > 20


def test_masks_of_the_trainer_and_packed_rows_work_with_a_mixture(mixed, tmp_path):
    instances = replace(mixed.instances, masking="training", packed_row_length=64)
    options = replace(mixed, output_dir=tmp_path / "data", instances=instances)
    manifest = generate(options, PipelineOptions([]))
    facts = manifest.statistics[CORPORA]
    sequences = manifest.statistics["train"]["sequences"]
    assert sequences == sum(sum(each["documents_read"]) for each in facts.values())


def test_a_killed_run_resumes_with_what_is_finished(
    mixed, mixed_data, fail_at_call, tmp_path, monkeypatch
):
    options = replace(mixed, output_dir=tmp_path / "data")
    with monkeypatch.context() as patch:
        fail_at_call(4, ValueError("killed"), patch, "build_shard")
        with pytest.raises(Exception, match="killed"):
            generate(options, PipelineOptions([]))
    calls = fail_at_call(99, ValueError("never"), monkeypatch, "build_shard")
    monkeypatch.setattr(pipeline.mixture_stages, "plan_mixing", None)
    monkeypatch.setattr(pipeline.mixture_stages, "measure_documents", None)
    assert generate(options, PipelineOptions([])) == mixed_data.manifest
    assert len(calls) == len(mixed_data.manifest.shards) - 3


def test_damaged_files_of_a_killed_run_are_made_again(
    mixed, mixed_data, fail_at_call, tmp_path, monkeypatch
):
    options = replace(mixed, output_dir=tmp_path / "data")
    with monkeypatch.context() as patch:
        fail_at_call(1, ValueError("killed"), patch, "build_shard")
        with pytest.raises(Exception, match="killed"):
            generate(options, PipelineOptions([]))
    receipts = tmp_path / "data" / "clozemill_in_progress" / "receipts"
    (receipts / "mixing.json").write_text("{}")
    (receipts / "documents-train-00001.parquet").write_bytes(b"PAR1")
    assert generate(options, PipelineOptions([])) == mixed_data.manifest


def test_other_weights_need_overwrite_even_if_a_kill_comes_between(
    mixed, mixed_data, fail_at_call, tmp_path, monkeypatch
):
    shutil.copytree(mixed.output_dir, tmp_path / "data")
    equal = Mixture(tuple(replace(each, weight=1) for each in mixed.mixture.corpora))
    options = replace(mixed, output_dir=tmp_path / "data", mixture=equal)
    with pytest.raises(UserError, match=r"made with mixture.weights.few 4, not 1: .*--overwrite"):
        generate(options, PipelineOptions([]))
    assert list(verify(DataSet(options.output_dir, mixed_data.manifest))) == []
    overwrite = replace(options, overwrite=True)
    with monkeypatch.context() as patch:
        fail_at_call(2, ValueError("killed"), patch, "build_shard")
        with pytest.raises(Exception, match="killed"):
            generate(overwrite, PipelineOptions([]))
    with pytest.raises(UserError, match="is not a data set"):
        DataSet.read(options.output_dir)
    with pytest.raises(UserError, match=r"unfinished .* mixture.weights.few 1, not 4: .*overwrite"):
        generate(replace(options, mixture=mixed.mixture), PipelineOptions([]))
    manifest = generate(overwrite, PipelineOptions([]))
    shares = [facts["shares_asked"] for facts in manifest.statistics[CORPORA].values()]
    assert shares == [[0.5] * 3] * 2
    assert list(verify(DataSet(options.output_dir, manifest))) == []
    assert generate(options, PipelineOptions([])) == manifest


def test_a_plan_with_other_corpora_is_refused_by_their_names(mixed, mixed_data, write_as, tmp_path):
    few, many = mixed.mixture.corpora
    assert mixed_data.manifest.options["corpora"].keys() == {"few", "many"}
    lines = replace(mixed.reading, documents=Documents.LINES)
    changed = Mixture((replace(few, reading=lines), many))
    with pytest.raises(UserError) as error:
        generate(replace(mixed, mixture=changed), PipelineOptions([]))
    assert "made with corpora.few.documents 'blank_lines', not 'lines': choose" in str(error.value)
    write_as(tmp_path / "new.txt", [0, 1])
    more = Mixture((few, many, Corpus("new", [f"{tmp_path}/new.txt"], weight=1)))
    with pytest.raises(UserError, match=r"made with no corpora.new; .*weights.new None, not 1; n"):
        generate(replace(mixed, mixture=more), PipelineOptions([]))
    without = replace(mixed, mixture=None, input_patterns=[f"{tmp_path}/new.txt"])
    with pytest.raises(UserError, match=r"made with corpora; .*; mixture; .*text_field None, not "):
        generate(without, PipelineOptions([]))


def test_a_corpus_without_text_to_train_on_is_an_error(mixed, tmp_path):
    (tmp_path / "short.txt").write_text("w0\n")
    reading = replace(mixed.reading, min_document_characters=10)
    short = Corpus("short", [f"{tmp_path}/short.txt"], weight=1, reading=reading)
    mixture = Mixture((*mixed.mixture.corpora, short))
    with pytest.raises(UserError, match="the corpus short of the mixture has no training document"):
        generate(replace(mixed, output_dir=tmp_path / "data", mixture=mixture), PipelineOptions([]))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda statistics: statistics.pop(CORPORA), "tells of a mixture, but not of its corpora"),
        (
            lambda statistics: statistics[CORPORA]["few"].pop("eval_shards"),
            "does not list the eval shards of each corpus",
        ),
        (
            lambda statistics: statistics[CORPORA]["few"].update(eval_shards=[]),
            "the eval shards of its corpora are not its eval shards",
        ),
    ],
)
def test_a_manifest_that_contradicts_itself_is_refused(change, fault, mixed_data):
    statistics = json.loads(json.dumps(mixed_data.manifest.statistics))
    change(statistics)
    faults = list(replace(mixed_data.manifest, statistics=statistics).contradictions())
    assert any(fault in each for each in faults)


def test_a_manifest_of_a_mixture_has_the_newer_format(mixed_data):
    older = replace(mixed_data.manifest, format_version=1)
    assert any("format version 1" in fault for fault in older.contradictions())
