"""The whole path on the command line: raw text, shards, a trained BERT, transformers."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from pipeline.files import sha256_of

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
BACKENDS = {"english": "tensorflow", "chinese": "jax"}
CONFIG = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 64,
}


def clozemill(*arguments):
    result = subprocess.run(
        [sys.executable, "-m", "launch", *map(str, arguments)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture(scope="module", params=["english", pytest.param("chinese", marks=pytest.mark.slow)])
def outputs(request, tmp_path_factory):
    backend = BACKENDS[request.param]
    if importlib.util.find_spec(backend) is None:
        pytest.skip(f"needs {backend}")
    directory = tmp_path_factory.mktemp(request.param)
    vocab_file = ROOT / "data_samples" / f"{request.param}_vocab.txt"
    config = CONFIG | {"vocab_size": len(vocab_file.read_text("utf-8").splitlines())}
    (directory / "config.json").write_text(json.dumps(config))
    data, run, exported = directory / "data", directory / "run", directory / "exported"
    clozemill(
        "generate",
        f"--input_file={ROOT / 'data_samples' / request.param}.txt",
        f"--vocab_file={vocab_file}",
        f"--output_dir={data}",
        "--max_seq_length=48",
        "--max_predictions_per_seq=8",
        "--dupe_factor=2",
        "--eval_fraction=0.2",
    )
    clozemill(
        "pretrain",
        f"--backend={backend}",
        f"--data_dir={data}",
        f"--output_dir={run}",
        f"--bert_config_file={directory / 'config.json'}",
        "--train_batch_size=16",
        "--learning_rate=2e-3",
        "--num_train_steps=60",
        "--num_warmup_steps=6",
        "--log_every_steps=10",
        "--eval_every_steps=60",
        "--max_eval_steps=1000",
    )
    clozemill("evaluate", f"--backend={backend}", f"--run_dir={run}", f"--data_dir={data}")
    clozemill("export", f"--run_dir={run}", f"--output_dir={exported}", "--format=huggingface")
    return data, run, exported


def test_training_learns_and_evaluation_reports_it(outputs):
    data, run, _ = outputs
    *lines, evaluation = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines] == [10, 20, 30, 40, 50, 60]
    (results,) = json.loads((run / "eval_results.json").read_text())["evaluations"]
    assert results["step"] == 60
    assert results.pop("data_dir") == str(data)
    assert results.pop("manifest_sha256") == sha256_of(data / "manifest.json")
    during_training = {name.removeprefix("eval_"): value for name, value in evaluation.items()}
    assert results == pytest.approx(during_training, rel=1e-5)
    assert results["masked_lm_loss"] < lines[0]["masked_lm_loss"] - 0.5
    assert 0 < results["next_sentence_loss"] < 1
    assert 0 <= results["masked_lm_accuracy"] <= 1
    assert 0 <= results["next_sentence_accuracy"] <= 1


def test_the_model_card_describes_data_training_and_evaluation(outputs):
    data, run, exported = outputs
    card = (exported / "README.md").read_text("utf-8")
    corpus = json.loads((data / "manifest.json").read_text())["statistics"]["corpus"]
    (results,) = json.loads((run / "eval_results.json").read_text())["evaluations"]
    assert f"{corpus['tokens']:,}" in card
    assert "60 of 60" in card
    assert f"{results['masked_lm_loss']:.4f}" in card


def test_the_run_is_exported_as_an_original_checkpoint(outputs, tmp_path):
    import tensorflow as tf

    from modeling.checkpoints.pretrained import read_pretrained
    from modeling.export.export import export
    from modeling.export.formats import Format

    pretrained = read_pretrained(outputs[1])
    export(pretrained, tmp_path / "original", Format.ORIGINAL)
    reader = tf.train.load_checkpoint(str(tmp_path / "original" / "bert_model.ckpt"))
    assert reader.get_tensor("global_step") == 60
    for name, values in pretrained.weights.items():
        np.testing.assert_array_equal(reader.get_tensor(name), values, name)


def test_transformers_opens_the_export_and_computes_the_same(outputs):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from keras import ops

    from modeling.batches import evaluation_batches, readable
    from modeling.bert_for_pretraining import BertForPreTraining
    from modeling.checkpoints.run_checkpoints import latest_checkpoint, load_weights, read_run
    from pipeline.manifest import DataSet

    data, run, exported = outputs
    config, _ = read_run(run)
    model = BertForPreTraining(config)
    load_weights(latest_checkpoint(run), model)
    data_set = DataSet.read(data)
    batch = next(readable(evaluation_batches(data_set, 16), data_set))
    ours = {name: ops.convert_to_numpy(value) for name, value in model(batch).items()}

    theirs, loading = transformers.BertForPreTraining.from_pretrained(
        exported, output_loading_info=True
    )
    assert not any(loading.values()), loading
    ids, mask, segments = (
        torch.tensor(batch[name], dtype=torch.long)
        for name in ("input_ids", "input_mask", "segment_ids")
    )
    with torch.no_grad():
        output = theirs.eval()(ids, attention_mask=mask, token_type_ids=segments)
    positions = batch["masked_lm_positions"][:, :, None].astype(np.int64)
    at_masks = np.take_along_axis(output.prediction_logits.numpy(), positions, axis=1)
    np.testing.assert_allclose(at_masks, ours["masked_lm_logits"], atol=1e-4)
    next_sentence = output.seq_relationship_logits.numpy()
    np.testing.assert_allclose(next_sentence, ours["next_sentence_logits"], atol=1e-4)
