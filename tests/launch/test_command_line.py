"""The command as a user types it; every test starts a separate process."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "data_samples"


def clozemill(*arguments, cwd=ROOT):
    return subprocess.run(
        [sys.executable, "-m", "launch", *map(str, arguments)],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def generate(tmp_path, *flags):
    return clozemill(
        "generate",
        f"--input_file={SAMPLES / 'english.txt'}",
        f"--vocab_file={SAMPLES / 'english_vocab.txt'}",
        f"--output_dir={tmp_path / 'data'}",
        "--max_seq_length=32",
        "--max_predictions_per_seq=5",
        "--dupe_factor=1",
        *flags,
    )


def assert_fails_with_one_line(result, *parts):
    assert result.returncode == 1
    # Log lines begin with the time.
    lines = [line for line in result.stderr.splitlines() if not re.match(r"\d\d:\d\d:\d\d ", line)]
    assert len(lines) == 1, result.stderr
    for part in parts:
        assert str(part) in lines[0]


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    directory = tmp_path_factory.mktemp("generated")
    result = generate(directory, "--eval_fraction=0.2")
    assert result.returncode == 0, result.stderr
    return directory / "data"


def test_usage_lists_the_verbs():
    result = clozemill("--help")
    assert result.returncode == 0
    for verb in ("generate", "pretrain", "evaluate", "export"):
        assert verb in result.stdout


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(closed, data_dir):
    command = f'"$0" -m launch verify --data_dir="$1" {closed}'
    result = subprocess.run(
        ["sh", "-c", command, sys.executable, data_dir],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0
    assert not result.stderr


@pytest.mark.parametrize("arguments", [[], ["generat"]])
def test_no_or_unknown_verb_exits_2_with_usage(arguments):
    result = clozemill(*arguments)
    assert result.returncode == 2
    assert "usage: clozemill VERB" in result.stderr


def test_help_of_a_verb_lists_its_flags_with_defaults():
    result = clozemill("generate", "--help")
    assert result.returncode == 0
    assert "--max_seq_length" in result.stdout
    assert "(default: '128')" in result.stdout


def test_missing_required_flag_exits_2():
    result = clozemill("evaluate", "--run_dir=somewhere")
    assert result.returncode == 2
    assert "--data_dir" in result.stderr


def test_wrong_flag_exits_2(tmp_path):
    result = generate(tmp_path, "--runer=FlinkRunner")
    assert result.returncode == 2
    assert "--runer" in result.stderr
    assert not (tmp_path / "data").exists()


def test_beam_flags_reach_beam(tmp_path):
    result = generate(tmp_path, "--runner=DaskRunner")
    assert_fails_with_one_line(result, "DaskRunner")


def test_generate_reports_what_it_made(data_dir):
    manifest = json.loads((data_dir / "manifest.json").read_text())
    assert manifest["statistics"]["train"]["instances"] > 0
    assert "--max_seq_length=32" in (data_dir / "flags.txt").read_text()


MIXTURE = """
[[corpus]]
name = "english"
input_file = "{samples}/english.txt"
weight = {weight}

[[corpus]]
name = "chinese"
input_file = "{samples}/chinese.txt"
weight = 1
"""


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """The flags of a mixture, and the result of `generate` with them."""
    folder = tmp_path_factory.mktemp("mixture")
    (folder / "mixture.toml").write_text(MIXTURE.format(samples=SAMPLES, weight=3))
    flags = [
        f"--mixture={folder / 'mixture.toml'}",
        f"--vocab_file={SAMPLES / 'english_vocab.txt'}",
        f"--output_dir={folder / 'data'}",
        *("--max_seq_length=32", "--dupe_factor=2", "--eval_fraction=0.2"),
    ]
    return flags, clozemill("generate", *flags)


def test_generate_reports_the_shares_of_a_mixture(mixture):
    flags, result = mixture
    assert result.returncode == 0, result.stderr
    lines = [line.split(maxsplit=2) for line in result.stdout.splitlines() if "mixture  " in line]
    assert [name for _, name, _ in lines] == ["chinese", "english"]
    for (_, _, rest), share, repeats in zip(lines, (25, 75), (0.5, 1.5), strict=True):
        found = re.fullmatch(
            r"\d+ documents, [\d,]+ tokens \(.*% \[UNK\]\); (.*) of the training tokens, asked "
            r"(.*)%; read (.*) times a pass",
            rest,
        )
        reached, asked, read = found.groups()
        assert float(asked) == share
        # The samples have few documents, of which each is some per cent.
        for each in reached.replace("%", "").split(" → "):
            assert abs(float(each) - share) < 5
        for each in read.split(" → "):
            assert abs(float(each) - repeats) < 0.25
    again = clozemill("generate", *flags)
    assert again.returncode == 0
    assert again.stdout == result.stdout
    directory = flags[2].partition("=")[2]
    assert clozemill("verify", f"--data_dir={directory}").returncode == 0
    assert "A: " in clozemill("inspect", f"--data_dir={directory}").stdout


def test_another_mixture_is_refused_in_the_same_directory(mixture, tmp_path):
    flags, _ = mixture
    other = tmp_path / "other.toml"
    other.write_text(MIXTURE.format(samples=SAMPLES, weight=2))
    result = clozemill("generate", *flags, f"--mixture={other}")
    assert_fails_with_one_line(result, "mixture.weights.english 3.0, not 2.0", "--overwrite")


def test_a_mixture_takes_the_place_of_input_files(mixture, tmp_path):
    flags, _ = mixture
    for inputs in ([*flags, "--input_file=x"], []):
        result = clozemill("generate", *inputs)
        assert result.returncode == 2
        assert "give either --input_file or --mixture" in result.stderr
    wrong = tmp_path / "wrong.toml"
    wrong.write_text("[[corpus]]\nname = 'a'\nfile = 'x'\n")
    result = clozemill("generate", *flags, f"--mixture={wrong}")
    assert_fails_with_one_line(result, "wrong.toml: the corpus a: unknown key file")


DESCRIBE = """
from launch.evaluate import describe
figures = {"masked_lm_loss": 1.5, "next_sentence_loss": 0.25}
corpora = {"german": figures, "english": {"next_sentence_loss": 2.0}}
print(describe({"checkpoint": "RUN", **figures, "corpora": corpora}, is_order=True))
"""


def test_evaluate_shows_the_corpora_of_a_mixture_as_a_table():
    result = subprocess.run(
        [sys.executable, "-c", DESCRIBE], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert [line.split() for line in result.stdout.splitlines()] == [
        ["checkpoint", "RUN"],
        ["masked_lm_loss", "1.5"],
        ["sentence_order_loss", "0.25"],
        [],
        ["corpus", "masked_lm_loss", "sentence_order_loss"],
        ["german", "1.5", "0.25"],
        ["english", "-", "2"],
    ]


@pytest.mark.slow
def test_a_run_is_evaluated_on_each_corpus_of_a_mixture(mixture, tmp_path):
    flags, _ = mixture
    data, run = flags[2].partition("=")[2], tmp_path / "run"
    trained = clozemill(
        "pretrain",
        *(f"--data_dir={data}", f"--output_dir={run}", "--model=tiny"),
        *("--num_train_steps=2", "--train_batch_size=4", "--eval_every_steps=2"),
    )
    assert trained.returncode == 0, trained.stderr
    result = clozemill("evaluate", f"--run_dir={run}", f"--data_dir={data}")
    assert result.returncode == 0, result.stderr
    rows = [line.split() for line in result.stdout.splitlines()[-3:]]
    assert [row[0] for row in rows] == ["corpus", "chinese", "english"]
    (written,) = json.loads((run / "eval_results.json").read_text())["evaluations"]
    for name, *cells in rows[1:]:
        figures = written["corpora"][name]
        assert [f"{figures[key]:.6g}" for key in rows[0][1:]] == cells


def test_verify_distinguishes_an_intact_data_set_from_a_damaged_one(data_dir, tmp_path):
    result = clozemill("verify", f"--data_dir={data_dir}")
    assert result.returncode == 0
    assert "match the manifest" in result.stdout
    damaged = Path(shutil.copytree(data_dir, tmp_path / "damaged"))
    shard = next(damaged.glob("train-*"))
    shard.unlink()
    result = clozemill("verify", f"--data_dir={damaged}")
    assert_fails_with_one_line(result, "1 differences between", damaged)
    assert result.stdout == f"{shard} is missing\n"


def test_inspect_and_verify_read_a_data_set_on_a_store(data_dir, bucket, server):
    for path in data_dir.iterdir():
        (bucket / "data" / path.name).upload(path)
    inspected = clozemill("inspect", f"--data_dir={data_dir}").stdout
    server.reset()
    assert clozemill("inspect", f"--data_dir={bucket}/data").stdout == inspected
    got = [path for method, path in server.requests if method == "GET" and "tfrecord" in path]
    assert len(got) == 1
    result = clozemill("verify", f"--data_dir={bucket}/data")
    assert "shards match the manifest" in result.stdout, result.stderr
    first, second, *_ = (bucket / "data").glob("*.tfrecord")
    first.unlink()
    second.upload(second.read_bytes() + b"x")
    result = clozemill("verify", f"--data_dir={bucket}/data")
    assert_fails_with_one_line(result, f"2 differences between {bucket}/data and its manifest")
    assert f"{first} is missing\n" in result.stdout
    result = clozemill("inspect", f"--data_dir={bucket}/nowhere")
    assert_fails_with_one_line(result, f"{bucket}/nowhere is not a data set")


def test_inspect_shows_nothing_of_a_damaged_shard(data_dir, tmp_path):
    damaged = Path(shutil.copytree(data_dir, tmp_path / "damaged"))
    shard = sorted(damaged.glob("train-*"))[0]
    shard.write_bytes(shard.read_bytes() * 2)
    result = clozemill("inspect", f"--data_dir={damaged}")
    assert_fails_with_one_line(result, f"{shard} has ", "generate the data set again")
    assert not result.stdout


def test_inspect_shows_masks_and_the_next_sentence_label(data_dir):
    result = clozemill("inspect", f"--data_dir={data_dir}", "--num_examples=3")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("  A: [CLS] ") == 3
    assert result.stdout.count(" → ") == result.stdout.count("{") >= 3
    assert "B is random" in result.stdout or "B follows A" in result.stdout


def test_inspect_refuses_flags_of_masks_where_they_are_stored(data_dir):
    result = clozemill("inspect", f"--data_dir={data_dir}", "--epoch=1")
    assert result.returncode == 2
    assert f"--epoch is for data of `generate --masking=training`, but the masks of {data_dir}" in (
        result.stderr
    )


def test_inspect_shows_the_masks_of_an_epoch(tmp_path):
    result = generate(tmp_path, "--masking=training")
    assert result.returncode == 0, result.stderr
    inspect = ("inspect", f"--data_dir={tmp_path / 'data'}", "--num_examples=2")
    first = clozemill(*inspect)
    assert first.returncode == 0, first.stderr
    assert clozemill(*inspect, "--epoch=0").stdout == first.stdout
    other = clozemill(*inspect, "--epoch=1", "--masked_lm_prob=0.5").stdout
    assert other.count(" → ") > 2 * first.stdout.count(" → ") > 0
    result = clozemill(*inspect, "--masked_lm_prob=2")
    assert_fails_with_one_line(result, "--masked_lm_prob=2.0 must lie between 0 and 1")


def test_saved_flags_repeat_the_run(data_dir, tmp_path):
    result = clozemill(
        "generate", f"--flagfile={data_dir / 'flags.txt'}", f"--output_dir={tmp_path / 'again'}"
    )
    assert result.returncode == 0, result.stderr
    first, second = (path / "manifest.json" for path in (data_dir, tmp_path / "again"))
    assert first.read_bytes() == second.read_bytes()


def test_a_data_set_that_cannot_be_right_says_so_last(tmp_path):
    strict = generate(tmp_path, "--nodo_lower_case", "--strict")
    assert_fails_with_one_line(strict, tmp_path / "data", "--strict")
    assert "so give --do_lower_case" in strict.stderr
    assert not strict.stdout
    shards = sorted((tmp_path / "data").glob("*.tfrecord"))
    assert shards
    assert not (tmp_path / "data" / "manifest.json").exists()
    for _ in range(2):
        result = generate(tmp_path, "--nodo_lower_case")
        assert result.returncode == 0, result.stderr
        health = json.loads((tmp_path / "data" / "manifest.json").read_text())["health"]
        assert result.stdout.splitlines()[-len(health) :] == [f"  health     {x}" for x in health]
        assert any("so give --do_lower_case" in line for line in health)
    assert "--nostrict" in (tmp_path / "data" / "flags.txt").read_text()


def test_recipe_generates_a_data_set(tmp_path):
    recipe = ROOT / "launch" / "recipes" / "demo_generate.flags"
    result = clozemill(
        "generate",
        f"--flagfile={recipe}",
        f"--output_dir={tmp_path / 'data'}",
        "--dupe_factor=1",
    )
    assert result.returncode == 0, result.stderr
    manifest = json.loads((tmp_path / "data" / "manifest.json").read_text())
    assert (manifest["max_seq_length"], manifest["max_predictions_per_seq"]) == (128, 20)
    assert manifest["statistics"]["eval"]["instances"] > 0


def test_data_set_without_manifest(tmp_path):
    (tmp_path / "data").mkdir()
    result = clozemill(
        "pretrain", f"--data_dir={tmp_path / 'data'}", f"--output_dir={tmp_path}", "--model=tiny"
    )
    assert_fails_with_one_line(result, tmp_path / "data", "manifest.json")
