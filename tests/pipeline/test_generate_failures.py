import gzip
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from apache_beam.options.pipeline_options import PipelineOptions
from apache_beam.runners.portability.portable_runner import PortableRunner

import pipeline.graph
import pipeline.stages
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.inputs import InputFormat
from pipeline.worker_processes import worker_processes


def names_in(folder):
    return sorted(path.name for path in folder.iterdir()) if folder.exists() else []


@pytest.mark.parametrize("text", ["\n \n\n", "\u200b\n\n\ufeff\n", "w1 w2\n"])
def test_a_corpus_without_instances_is_an_error_and_leaves_nothing(text, options, tmp_path):
    (tmp_path / "empty.txt").write_text(text)
    empty = replace(options, input_patterns=[f"{tmp_path}/empty.txt"])
    with pytest.raises(UserError, match=r"empty\.txt gave no training instance"):
        generate(empty, PipelineOptions([]))
    assert names_in(options.output_dir) == []


def test_duplicates_that_leave_nothing_are_told(options, tmp_path):
    (tmp_path / "same.txt").write_text("\u200b\n\n" + "w1\n\n" * 2 + "w1 \u200b\n\n" * 2)
    same = replace(
        options,
        input_patterns=[f"{tmp_path}/same.txt"],
        drop_near_duplicates=0.8,
        eval_fraction=0.0,
        num_shards=1,
    )
    with pytest.raises(UserError, match=r"5 documents .* 4 of them have tokens, 3 of these are du"):
        generate(same, PipelineOptions([]))


@pytest.mark.parametrize(
    ("wrong", "name"),
    [
        ({"vocab_file": Path("missing_vocab.txt")}, "missing_vocab"),
        ({"input_patterns": ["missing_corpus*.txt"]}, "missing_corpus"),
    ],
    ids=["vocabulary", "input"],
)
def test_missing_files_are_reported_before_anything_is_written(wrong, name, options):
    with pytest.raises(UserError, match=name):
        generate(replace(options, **wrong), PipelineOptions([]))
    assert not options.output_dir.exists()


@pytest.mark.parametrize(("step", "call"), [("tokenize_documents", 1), ("build_shard", 4)])
def test_a_failure_in_a_worker_leaves_no_data_set_and_can_be_repeated(
    step, call, data_set, options, fail_at_call, monkeypatch
):
    with monkeypatch.context() as patch:
        calls = fail_at_call(call, ValueError("the disk is on fire"), patch, step)
        with pytest.raises(Exception, match="the disk is on fire") as raised:
            generate(options, PipelineOptions([]))
    assert not isinstance(raised.value, UserError)
    assert len(calls) == call
    assert "manifest.json" not in names_in(options.output_dir)
    assert generate(options, PipelineOptions([])) == data_set[1]
    assert names_in(options.output_dir) == names_in(data_set[0])


def test_a_user_error_in_a_worker_is_raised_unchanged(options, fail_at_call, monkeypatch):
    message = "the file /x/a.txt (of 3) is [unusable]: do something"
    fail_at_call(1, UserError(message), monkeypatch, "tokenize_documents")
    with pytest.raises(UserError) as raised:
        generate(options, PipelineOptions([]))
    assert str(raised.value) == message
    assert names_in(options.output_dir) == ["clozemill_in_progress"]


@pytest.mark.parametrize("number", [0, 2])
def test_the_error_names_a_damaged_input_file_and_no_data_set_is_left(
    number, options, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.inputs._DECOMPRESSED_HEAD_BYTES", 1)  # the damage is further on
    damaged = tmp_path / "damaged.txt.gz"
    damaged.write_bytes(gzip.compress(Path(options.input_patterns[0]).read_bytes())[:-20])
    damaged_options = replace(options, input_patterns=[str(damaged)])
    with (
        worker_processes(number) as processes,
        pytest.raises(UserError, match=r"damaged\.txt\.gz") as raised,
    ):
        generate(damaged_options, processes=processes)
    assert "while running" not in str(raised.value)
    assert "\n" not in str(raised.value)
    assert names_in(options.output_dir) == ["clozemill_in_progress"]


def test_the_error_names_a_bad_record_and_no_data_set_is_left(options, tmp_path):
    (tmp_path / "corpus.jsonl").write_text('{"text": "w1"}\n{"body": "w2"}\n')
    other = replace(
        options, input_patterns=[f"{tmp_path}/corpus.jsonl"], input_format=InputFormat.AUTO
    )
    with pytest.raises(UserError, match=r"/corpus\.jsonl, line 2: .*'text', of \['body'\]"):
        generate(other, PipelineOptions([]))
    assert "manifest.json" not in names_in(options.output_dir)


def test_a_failed_overwrite_can_be_repeated(data_set, options, fail_at_call, monkeypatch):
    """The command line also writes a file of flags into the data set."""
    shutil.copytree(data_set[0], options.output_dir)
    (options.output_dir / "flags.txt").write_text("--overwrite")
    overwrite = replace(options, overwrite=True)
    with monkeypatch.context() as patch:
        fail_at_call(1, ValueError("on fire"), patch, "build_shard")
        with pytest.raises(Exception, match="on fire"):
            generate(overwrite, PipelineOptions([]))
    assert generate(overwrite, PipelineOptions([])) == data_set[1]


def test_documents_lost_by_a_runner_are_detected(options, monkeypatch):
    step = pipeline.stages.read_documents_of_bucket
    monkeypatch.setattr(
        pipeline.stages,
        "read_documents_of_bucket",
        lambda row_groups, *others: step(row_groups[1:], *others),
    )
    with pytest.raises(RuntimeError, match="lost"):
        generate(options, PipelineOptions([]))
    assert names_in(options.output_dir) == []


@pytest.mark.parametrize("lost", ["train-00000-of-00002.tfrecord", "train-00001-of-00002.tfrecord"])
def test_a_shard_lost_by_a_runner_is_detected(lost, options, monkeypatch):
    pair_plans_with_row_groups = pipeline.graph._pair_plans_with_row_groups

    def pair_others(grouped):
        return (pair for pair in pair_plans_with_row_groups(grouped) if pair[0].name != lost)

    monkeypatch.setattr(pipeline.graph, "_pair_plans_with_row_groups", pair_others)
    with pytest.raises(RuntimeError, match=f"{lost} was never finished: the runner has lost"):
        generate(replace(options, eval_fraction=0.0, num_shards=1), PipelineOptions([]))
    assert "manifest.json" not in names_in(options.output_dir)


@pytest.mark.parametrize(
    "flags",
    [
        ["--runner=DaskRunner"],
        ["--runner=apache_beam.runners.dask.dask_runner.DaskRunner"],
        ["--direct_running_mode=multi_threading"],
        ["--experiments=data_buffer_time_limit_ms=100"],
    ],
)
def test_runners_that_lose_records_are_refused(flags, options):
    with pytest.raises(UserError, match=flags[0].partition("=")[0]):
        generate(options, PipelineOptions(flags))
    assert not options.output_dir.exists()


@pytest.fixture
def interrupted_job(monkeypatch):
    """The job of a remote runner; the user presses Ctrl-C while it runs."""

    class Job:
        is_cancelled = False

        def wait_until_finish(self):
            raise KeyboardInterrupt

        def cancel(self):
            self.is_cancelled = True

    class Runner(PortableRunner):
        def run_portable_pipeline(self, pipeline, options):
            job.pipeline = self._optimize_pipeline(pipeline, options)
            return job

    job = Job()
    monkeypatch.setattr("apache_beam.pipeline.create_runner", lambda _: Runner())
    return job


def test_an_interrupted_run_cancels_its_job(interrupted_job, options):
    with pytest.raises(KeyboardInterrupt):
        generate(options, PipelineOptions(["--runner=FlinkRunner"]))
    assert interrupted_job.is_cancelled


def test_a_job_uses_only_features_of_every_portable_runner(interrupted_job, options):
    with pytest.raises(KeyboardInterrupt):
        generate(replace(options, drop_duplicates=True), PipelineOptions(["--runner=FlinkRunner"]))
    transforms = interrupted_job.pipeline.components.transforms.values()
    urns = {transform.spec.urn for transform in transforms if not transform.subtransforms}
    kinds = {urn.split(":")[2] for urn in urns}
    assert {kind for kind in kinds if not kind.startswith("combine")} == {
        *("impulse", "pardo", "group_by_key", "flatten")
    }
    assert not interrupted_job.pipeline.requirements  # such as state, timers, splittable DoFns
