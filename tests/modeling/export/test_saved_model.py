"""TensorFlow alone opens a SavedModel, in a process without Clozemill and Keras."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from modeling.bert_for_pretraining import BertForPreTraining

if keras.config.backend() != "tensorflow":
    pytest.skip("needs the TensorFlow backend", allow_module_level=True)

from modeling.export.saved_model import write_saved_model

INPUTS = ["input_ids", "input_mask", "segment_ids"]
# Reads requests (path, signature, file of inputs, file of outputs). Replies with the inputs and
# outputs of each signature, and with the error if it fails.
CLIENT = """
import json, sys
blocked = ["launch", "modeling", "pipeline", "keras", "tf_keras"]
sys.modules.update(dict.fromkeys(blocked))
import numpy as np
import tensorflow as tf
models, replies = {}, []
for path, name, inputs, outputs in json.load(sys.stdin):
    if path not in models:
        models[path] = tf.saved_model.load(path)
    signatures = models[path].signatures
    signature = signatures[name]
    specs = signature.structured_input_signature[1], signature.structured_outputs
    reply = {
        "signatures": list(signatures),
        "specs": [
            {name: (spec.dtype.name, spec.shape.as_list()) for name, spec in each.items()}
            for each in specs
        ],
    }
    batch = {key: tf.constant(values) for key, values in np.load(inputs).items()}
    try:
        results = signature(**batch)
        np.savez(outputs, **{key: value.numpy() for key, value in results.items()})
    except tf.errors.InvalidArgumentError as error:
        reply["error"] = str(error)
    replies.append(reply)
assert not any(sys.modules[name] for name in blocked)
json.dump(replies, sys.stdout)
"""
# Directory, signature, batch size, sequence length.
REQUESTS = [
    ("encoder", "encode", 1, 16),
    ("encoder", "serving_default", 5, 9),
    ("encoder", "encode", 1, 17),
    ("heads", "encode", 3, 16),
    ("heads", "predict", 1, 16),
    ("heads", "predict", 4, 12),
]


@pytest.fixture(scope="module")
def model(shallow_config, randomize):
    """A model of random weights, not to be changed."""
    return randomize(BertForPreTraining(shallow_config))


@pytest.fixture(scope="module")
def batches(make_batch):
    """One batch per request."""
    made = []
    for _, name, size, length in REQUESTS:
        batch = make_batch(size)
        names = [*INPUTS, "masked_lm_positions"] if name == "predict" else INPUTS
        cut = {name: batch[name][:, :length] for name in names}
        if length > batch["input_ids"].shape[1]:
            cut = {name: np.ones((size, length), np.int32) for name in names}
        made.append(cut)
    return made


@pytest.fixture(scope="module")
def replies(tmp_path_factory, model, batches):
    """The client's reply to each request, with the outputs if there was no error."""
    directory = tmp_path_factory.mktemp("saved_model")
    (directory / "vocab.txt").write_text("[PAD]\n")
    for name, heads in (("encoder", False), ("heads", True)):
        write_saved_model(directory / name, model, directory / "vocab.txt", True, heads)
    requests = []
    for number, (request, batch) in enumerate(zip(REQUESTS, batches, strict=True)):
        inputs, outputs = (directory / f"{kind}{number}.npz" for kind in ("inputs", "outputs"))
        np.savez(inputs, **batch)
        requests.append([str(directory / request[0]), request[1], str(inputs), str(outputs)])
    result = subprocess.run(
        # -I leaves out this directory and PYTHONPATH.
        [sys.executable, "-I", "-c", CLIENT],
        cwd=directory,
        input=json.dumps(requests),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    parsed = json.loads(result.stdout)
    for reply, request in zip(parsed, requests, strict=True):
        if "error" not in reply:
            with np.load(request[3]) as outputs:
                reply["outputs"] = dict(outputs)
    return parsed


def expected_outputs(model, name, batch):
    if name == "predict":
        return {key: np.asarray(value) for key, value in model(batch).items()}
    sequence_output, pooled_output = model.bert(*(batch[key] for key in INPUTS))
    return {
        "sequence_output": np.asarray(sequence_output),
        "pooled_output": np.asarray(pooled_output),
    }


@pytest.mark.parametrize(
    "number", [0, 1, 3, 4, 5], ids=lambda number: "-".join(map(str, REQUESTS[number]))
)
def test_tensorflow_alone_computes_the_same(model, batches, replies, number):
    expected = expected_outputs(model, REQUESTS[number][1], batches[number])
    outputs = replies[number]["outputs"]
    assert outputs.keys() == expected.keys()
    for name, values in expected.items():
        np.testing.assert_allclose(outputs[name], values, atol=1e-5, err_msg=name)


def test_signatures_are_named_and_of_any_batch_and_length(config, replies):
    h = config.hidden_size
    inputs = {name: ["int32", [None, None]] for name in INPUTS}
    outputs = {
        "sequence_output": ["float32", [None, None, h]],
        "pooled_output": ["float32", [None, h]],
    }
    for reply in replies[:4]:
        assert reply["specs"] == [inputs, outputs]
    inputs["masked_lm_positions"] = ["int32", [None, None]]
    outputs["masked_lm_logits"] = ["float32", [None, None, config.vocab_size]]
    outputs["next_sentence_logits"] = ["float32", [None, 2]]
    for reply in replies[4:]:
        assert reply["specs"] == [inputs, outputs]
    assert set(replies[0]["signatures"]) == {"encode", "serving_default"}
    assert set(replies[-1]["signatures"]) == {"encode", "predict", "serving_default"}


def test_sequences_longer_than_the_model_reads_are_an_error(replies):
    assert "17" in replies[2]["error"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory, model):
    """A SavedModel with heads."""
    directory = tmp_path_factory.mktemp("saved")
    (directory / "vocab.txt").write_text("[PAD]\n[UNK]\n")
    write_saved_model(directory / "model", model, directory / "vocab.txt", False, heads=True)
    return directory / "model"


@pytest.fixture
def loaded(saved):
    return tf.saved_model.load(str(saved))


def test_the_vocabulary_is_an_asset(saved, loaded):
    path = loaded.vocab_file.asset_path.numpy().decode()
    assert path == str(saved / "assets" / "vocab.txt")
    assert (saved / "assets" / "vocab.txt").read_text() == "[PAD]\n[UNK]\n"
    assert not loaded.do_lower_case.numpy()


def test_the_loaded_object_is_a_function_with_dropout_only_in_training(model, make_batch, loaded):
    batch = {name: tf.constant(make_batch(3)[name]) for name in INPUTS}
    expected = expected_outputs(model, "encode", batch)
    for outputs in (loaded(batch), loaded(batch, training=False)):
        assert outputs.keys() == expected.keys()
        for name, values in expected.items():
            np.testing.assert_allclose(outputs[name], values, atol=1e-5, err_msg=name)
    first, second = (loaded(batch, training=True)["sequence_output"].numpy() for _ in range(2))
    assert np.abs(first - expected["sequence_output"]).max() > 0.1
    assert np.abs(first - second).max() > 0.1


def test_the_loaded_object_learns(model, make_batch, loaded):
    batch = {name: tf.constant(make_batch(4)[name]) for name in INPUTS}
    wanted = tf.constant([0.5, -0.5, 0.5, -0.5])
    assert len(loaded.variables) == len(loaded.trainable_variables) == len(model.bert.weights)
    assert list(loaded.regularization_losses) == []
    losses = []
    for _ in range(20):
        with tf.GradientTape() as tape:
            pooled = loaded(batch)["pooled_output"]
            loss = tf.reduce_mean((pooled[:, 0] - wanted) ** 2)
        gradients = tape.gradient(loss, loaded.trainable_variables)
        assert all(gradient is not None for gradient in gradients)
        for variable, gradient in zip(loaded.trainable_variables, gradients, strict=True):
            variable.assign_sub(0.05 * tf.convert_to_tensor(gradient))
        losses.append(float(loss))
    assert losses[-1] < 0.5 * losses[0]


def test_weights_are_stored_once(saved, model):
    stored = sum(path.stat().st_size for path in (saved / "variables").iterdir())
    assert stored < 1.5 * sum(4 * variable.numpy().size for variable in model.weights)
