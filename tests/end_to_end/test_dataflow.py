"""`clozemill generate --dry_run=True` translates the job for Dataflow, without any network.

The tests need `apache-beam[gcp]`.
"""

import pytest

pytest.importorskip("google.cloud.storage", reason="needs apache-beam[gcp]")
FLAGS = [
    "--runner=DataflowRunner",
    "--project=my-project",
    "--region=europe-west1",
    "--temp_location=gs://bucket/temp",
    "--sdk_container_image=europe-docker.pkg.dev/my-project/images/clozemill",
]


@pytest.fixture
def dry_run(run_generate, tmp_path):
    """A function that runs `generate` with --dry_run=True; gives the process and what it left."""

    def run(*flags):
        folder = tmp_path / "current"
        folder.mkdir()
        result = run_generate(folder / "data", *FLAGS, "--dry_run=True", *flags)
        return result, list(tmp_path.rglob("*"))[1:]

    return run


@pytest.mark.parametrize(
    "flags",
    [
        [],
        ["--output_dir=gs://bucket/data", "--tokenized_dir=gs://bucket/tokenized"],
        ["--staging_location=gs://bucket/staging", "--worker_machine_type=n1-standard-4"],
    ],
    ids=["a local directory", "directories of the store", "options of Dataflow"],
)
def test_a_dry_run_translates_the_job_and_leaves_nothing(flags, dry_run):
    result, left = dry_run(*flags)
    assert result.returncode == 0, result.stderr
    assert result.stdout == (
        "dry run: the job was translated for Dataflow (portions: 1; shards: 9); nothing was "
        "submitted, and nothing written\n"
    )
    assert "Traceback" not in result.stderr
    assert left == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--project=Bad_Name"], "Invalid Project ID (Bad_Name)"),
        (["--temp_location="], "a dry run needs --temp_location=gs://"),
        (["--input_file=/no/such/file"], "/no/such/file"),
    ],
)
def test_what_dataflow_would_refuse_is_one_line(flags, says, dry_run, assert_one_line):
    result, left = dry_run(*flags)
    assert_one_line(result.returncode, result.stderr, says)
    assert left == []
