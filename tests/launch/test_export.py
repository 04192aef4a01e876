"""`clozemill export`: its flags, what it refuses, and what it writes."""

import dataclasses
import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from modeling.config import BertConfig, weight_shapes
from modeling.training_options import TrainingOptions
from pipeline.json_files import write_json
from pipeline.manifest import Manifest

ROOT = Path(__file__).parents[2]
FORMATS = ["huggingface", "original", "onnx", "saved_model", "keras"]
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(400))]
CONFIG = BertConfig(
    vocab_size=len(TOKENS),
    hidden_size=16,
    num_hidden_layers=1,
    num_attention_heads=2,
    intermediate_size=24,
    max_position_embeddings=32,
)
OPTIONS = {
    "dupe_factor": 2,
    "masked_lm_prob": 0.15,
    "do_whole_word_mask": True,
    "word_segmenter": None,
}
CORPUS = {
    "documents_tokenized": 60,
    "sentences_read": 928,
    "tokens": 20012,
    "share_unknown": 0.0,
    "input_bytes": 79055,
}


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory):
    """A run with two checkpoints; tests must not change it."""
    directory = tmp_path_factory.mktemp("run")
    (directory / "bert_config.json").write_text(CONFIG.to_json())
    vocabulary = "".join(f"{token}\n" for token in TOKENS)
    (directory / "vocab.txt").write_text(vocabulary)
    Manifest(
        max_seq_length=16,
        max_predictions_per_seq=2,
        do_lower_case=True,
        vocab_size=len(TOKENS),
        vocab_sha256=hashlib.sha256(vocabulary.encode()).hexdigest(),
        options=OPTIONS,
        statistics={"corpus": CORPUS},
        shards=[],
    ).write(directory)
    state = {
        "instances_seen": 0,
        "options": dataclasses.asdict(TrainingOptions()),
        "sums": {},
        "loss_scale": None,
        "started_from": None,
    }
    rng = np.random.default_rng(0)
    for step in (2, 4):
        checkpoint = directory / "checkpoints" / f"step-{step:08d}"
        checkpoint.mkdir(parents=True)
        write_json(checkpoint / "state.json", {"step": step, **state})
        weights = {
            name: rng.standard_normal(shape).astype(np.float32)
            for name, shape in weight_shapes(CONFIG).items()
        }
        np.savez(checkpoint / "weights.npz", **weights)
    return directory


@pytest.fixture(scope="module")
def huggingface(tmp_path_factory, run_dir, export):
    """The run's export; tests must not change it."""
    output_dir = tmp_path_factory.mktemp("exported") / "huggingface"
    result = export(f"--run_dir={run_dir}", f"--output_dir={output_dir}")
    line = f"{output_dir}: step-00000004 of {run_dir}, for huggingface\n"
    assert result == (0, line, "")
    return output_dir


def assert_fails(result, *parts, code=1):
    """Checks that one line says why; for wrong flags, a second one says where they are listed."""
    assert result.returncode == code, result.stderr
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == code, result.stderr
    assert lines[0].startswith("clozemill export: ")
    for part in parts:
        assert str(part) in lines[0]


def test_help_lists_the_formats(export):
    result = export("--help")
    assert result.returncode == 0
    for name in FORMATS:
        assert f"{name}: " in result.stdout
    for flag in ("checkpoint", "run_dir", "output_dir", "average_last", "heads", "overwrite"):
        assert f"--{flag}" in result.stdout or f"--[no]{flag}" in result.stdout


def test_a_run_and_its_newest_checkpoint_export_the_same(tmp_path, export, run_dir, huggingface):
    for number, given in enumerate(
        [f"--checkpoint={run_dir}", f"--checkpoint={run_dir}/checkpoints/step-00000004"]
    ):
        output_dir = tmp_path / str(number)
        assert export(given, f"--output_dir={output_dir}").returncode == 0
        assert {path.name: path.read_bytes() for path in output_dir.iterdir()} == {
            path.name: path.read_bytes() for path in huggingface.iterdir()
        }


def test_the_same_command_again_finds_the_finished_export(tmp_path, export, run_dir):
    flags = [f"--run_dir={run_dir}", f"--output_dir={tmp_path / 'out'}", "--format=original"]
    assert export(*flags).returncode == 0
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    line = (
        f"{tmp_path / 'out'}: already holds step-00000004 of {run_dir}, for original, undamaged\n"
    )
    assert export(*flags) == (0, line, "")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()} == times
    (tmp_path / "out" / "vocab.txt").write_text("")
    assert_fails(export(*flags), tmp_path / "out" / "vocab.txt", "--overwrite")


def test_a_hugging_face_directory_is_converted(tmp_path, export, huggingface):
    result = export(
        f"--checkpoint={huggingface}", f"--output_dir={tmp_path / 'out'}", "--format=original"
    )
    line = f"{tmp_path / 'out'}: the Hugging Face directory {huggingface}, for original\n"
    assert result == (0, line, "")
    assert (tmp_path / "out" / "bert_model.ckpt.index").exists()


@pytest.mark.parametrize("step", ["2", "step-00000002"])
def test_a_step_of_a_run_is_exported(tmp_path, export, run_dir, step):
    flags = [f"--run_dir={run_dir}", f"--output_dir={tmp_path / 'out'}", "--format=original"]
    result = export(*flags, f"--checkpoint={step}")
    assert result == (0, f"{tmp_path / 'out'}: step-00000002 of {run_dir}, for original\n", "")


def test_config_and_gelu_of_an_original_checkpoint_are_given(tmp_path, export, run_dir):
    original, config_file = tmp_path / "original", tmp_path / "config.json"
    flags = [f"--run_dir={run_dir}", f"--output_dir={original}", "--format=original"]
    assert export(*flags).returncode == 0
    content = json.loads((original / "bert_config.json").read_text())
    content.pop("gelu_form")
    config_file.write_text(json.dumps(content))
    for name in ("bert_config.json", "export.json"):
        (original / name).unlink()
    flags = [f"--checkpoint={original}", f"--output_dir={tmp_path / 'out'}"]
    assert_fails(export(*flags), original / "bert_config.json", "--bert_config_file")
    flags.append(f"--bert_config_file={config_file}")
    assert "--gelu_form=gelu_erf" in export(*flags).stderr
    result = export(*flags, "--gelu_form=gelu_erf", "--overwrite")
    assert (result.returncode, result.stderr) == (0, "")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["hidden_act"] == "gelu"


def test_the_mean_of_checkpoints_is_exported(tmp_path, export, run_dir):
    safetensors = pytest.importorskip("safetensors.numpy")
    result = export(f"--run_dir={run_dir}", f"--output_dir={tmp_path / 'out'}", "--average_last=2")
    assert result.returncode == 0
    assert "the mean of step-00000002 to step-00000004" in result.stdout
    name = "bert/embeddings/word_embeddings"
    values = [
        np.load(run_dir / "checkpoints" / step / "weights.npz")[name].astype(np.float64)
        for step in ("step-00000002", "step-00000004")
    ]
    tensors = safetensors.load_file(tmp_path / "out" / "model.safetensors")
    mean = ((values[0] + values[1]) / 2).astype(np.float32)
    np.testing.assert_array_equal(tensors["bert.embeddings.word_embeddings.weight"], mean)


@pytest.mark.parametrize("heads", [False, True])
def test_heads_are_left_out_unless_asked_for(tmp_path, export, run_dir, heads):
    onnx = pytest.importorskip("onnx")
    flags = ["--heads"] if heads else []
    result = export(
        f"--run_dir={run_dir}", f"--output_dir={tmp_path / 'out'}", "--format=onnx", *flags
    )
    assert result.returncode == 0, result.stderr
    outputs = {output.name for output in onnx.load(tmp_path / "out" / "model.onnx").graph.output}
    assert outputs == (
        {"logits", "seq_relationship_logits"} if heads else {"last_hidden_state", "pooler_output"}
    )


def test_an_earlier_export_is_replaced_only_with_overwrite(tmp_path, export, run_dir):
    flags = [f"--run_dir={run_dir}", f"--output_dir={tmp_path / 'out'}"]
    assert export(*flags, "--format=original").returncode == 0
    assert_fails(export(*flags), tmp_path / "out", "not empty", "--overwrite")
    assert (tmp_path / "out" / "bert_model.ckpt.index").exists()
    assert export(*flags, "--overwrite").returncode == 0
    assert not (tmp_path / "out" / "bert_model.ckpt.index").exists()
    (tmp_path / "out" / "thesis.tex").write_text("mine")
    assert_fails(export(*flags, "--overwrite"), tmp_path / "out", "thesis.tex")


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        ([], ["checkpoint", "run_dir"]),
        (["--checkpoint=a", "--run_dir=b"], ["checkpoint", "run_dir"]),
        (["--run_dir=a", "--format=torch"], ["--format=torch"]),
        (["--run_dir=a", "--average_last=0"], ["--average_last=0"]),
        (["--run_dir=a", "--formats=keras"], ["formats"]),
        (["--run_dir=a", "--checkpoint="], ["--checkpoint is empty"]),
        (["--run_dir=a", "b"], ["'b'"]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_flags_exit_2(tmp_path, export, flags, parts):
    assert_fails(export(f"--output_dir={tmp_path / 'out'}", *flags), *parts, code=2)
    assert list(tmp_path.iterdir()) == []


def test_an_output_directory_must_be_given(export):
    assert_fails(export("--run_dir=a"), "--output_dir", code=2)


@pytest.mark.parametrize(
    ("flags", "parts"),
    [
        (["--checkpoint=nowhere"], ["nowhere", "not a trained BERT"]),
        (["--run_dir=nowhere"], ["nowhere", "is not a run"]),
        (["--run_dir=RUN", "--average_last=3"], ["RUN", "2 checkpoints, not 3"]),
        (["--run_dir=RUN", "--checkpoint=3"], ["RUN", "of step 3", "step-00000002"]),
        (["--run_dir=RUN", "--gelu_form=gelu_erf"], ["leave out --gelu_form=gelu_erf", "RUN"]),
        (["--checkpoint=RUN", "--bert_config_file=x"], ["leave out --bert_config_file=x", "RUN"]),
        (["--checkpoint=HUGGINGFACE", "--average_last=2"], ["HUGGINGFACE", "is not a run"]),
        (["--run_dir=RUN", "--output_dir=RUN"], ["RUN", "not part of an export"]),
        (["--run_dir=RUN", "--output_dir=RUN/vocab.txt"], ["RUN/vocab.txt", "is a file"]),
        (["--run_dir=RUN", "--output_dir=RUN/vocab.txt/x"], ["cannot write RUN/vocab.txt/x"]),
    ],
    ids=lambda value: " ".join(value) if value[0].startswith("--") else "",
)
def test_a_failed_export_is_one_line(tmp_path, export, run_dir, huggingface, flags, parts):
    def placed(text):
        return text.replace("RUN", str(run_dir)).replace("HUGGINGFACE", str(huggingface))

    before = sorted(run_dir.rglob("*"))
    result = export(f"--output_dir={tmp_path / 'out'}", *map(placed, flags))
    assert_fails(result, *map(placed, parts))
    assert list(tmp_path.iterdir()) == []
    assert sorted(run_dir.rglob("*")) == before


@pytest.mark.parametrize(
    ("export_format", "package"),
    [("huggingface", "safetensors"), ("huggingface", "tokenizers"), ("onnx", "onnx")],
)
def test_a_missing_package_is_reported_in_one_line_with_what_to_install(
    tmp_path, export, run_dir, export_format, package
):
    flags = [f"--run_dir={run_dir}", f"--output_dir={tmp_path / 'out'}"]
    result = export(*flags, f"--format={export_format}", missing=[package])
    assert_fails(result, f"--format={export_format} needs", package, "pip install 'clozemill[")
    packages = ["safetensors", "tokenizers", "onnx"]
    assert export(*flags, "--format=original", missing=packages).returncode == 0


@pytest.mark.parametrize("export_format", FORMATS)
@pytest.mark.parametrize("max_bytes", [1_000, 12_000])
def test_a_full_disk_is_reported_in_one_line_and_nothing_is_left(
    tmp_path, export, run_dir, export_format, max_bytes
):
    """A limit on file sizes raises the same error as a full disk, except for its number."""
    output_dir = tmp_path / "out"
    flags = f"--run_dir={run_dir}", f"--output_dir={output_dir}", f"--format={export_format}"
    result = export(*flags, max_bytes=max_bytes)
    assert_fails(result, f"cannot write {output_dir}", "File too large")
    assert list(tmp_path.iterdir()) == []


def test_the_command_line_prints_nothing_but_its_line(tmp_path):
    """In a separate process, where libraries print all they have."""
    result = subprocess.run(
        [sys.executable, "-m", "launch", "export", "--run_dir=nowhere", "--output_dir=out"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert_fails(result, "nowhere is not a run")
    assert list(tmp_path.iterdir()) == []
