import dataclasses
import errno
import json
import shutil
import sys
import zipfile

import keras
import numpy as np
import pytest
import tensorflow as tf

import modeling.export.export
from modeling.checkpoints.pretrained import read_pretrained
from modeling.config import BertConfig, GeluForm
from modeling.export.export import check_output, export
from modeling.export.formats import Format
from pipeline.errors import UserError
from pipeline.files import sha256_of
from pipeline.json_files import write_json
from pipeline.pre_tokenizers import PreTokenizer

FILES = {
    Format.HUGGINGFACE: {
        "README.md",
        "config.json",
        "export.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    },
    Format.ORIGINAL: {
        "bert_config.json",
        "export.json",
        "bert_model.ckpt.data-00000-of-00001",
        "bert_model.ckpt.index",
        "vocab.txt",
    },
    Format.ONNX: {
        "config.json",
        "export.json",
        "model.onnx",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    },
    Format.SAVED_MODEL: {
        "assets",
        "bert_config.json",
        "export.json",
        "fingerprint.pb",
        "saved_model.pb",
        "variables",
        "vocab.txt",
    },
    Format.KERAS: {"bert_config.json", "export.json", "model.keras", "vocab.txt"},
}
# The other formats take seconds, or need TensorFlow or a package.
QUICK = [Format.HUGGINGFACE, Format.ORIGINAL, Format.KERAS]


@pytest.fixture(scope="module")
def run(tmp_path_factory, shallow_config, write_run):
    """A run with another form of gelu than the default, and its model; neither to be changed."""
    run_dir = tmp_path_factory.mktemp("run")
    config = dataclasses.replace(shallow_config, gelu_form=GeluForm.ERF)
    return run_dir, write_run(run_dir, config, step=7)


@pytest.fixture(scope="module")
def pretrained(run):
    return read_pretrained(run[0])


@pytest.fixture(scope="module")
def exported(tmp_path_factory, pretrained):
    """A function that returns the run's export in a format, not to be changed."""
    written = {}

    def directory(export_format):
        if export_format == Format.ONNX:
            pytest.importorskip("onnx")
        if export_format == Format.SAVED_MODEL and keras.config.backend() != "tensorflow":
            pytest.skip("needs the TensorFlow backend")
        if export_format not in written:
            output_dir = tmp_path_factory.mktemp("exported") / "new" / export_format
            export(pretrained, output_dir, export_format)
            written[export_format] = output_dir
        return written[export_format]

    return directory


@pytest.mark.parametrize("export_format", QUICK)
def test_exports_say_what_found_the_words(export_format, pretrained, tmp_path, caplog):
    tokenizer = dataclasses.replace(
        pretrained.tokenizer, strip_accents=False, pre_tokenizer=PreTokenizer.MECAB
    )
    japanese = dataclasses.replace(pretrained, tokenizer=tokenizer)
    output_dir = tmp_path / "export"
    export(japanese, output_dir, export_format)
    files = {path.name for path in output_dir.iterdir()}
    assert files == FILES[export_format] - {"tokenizer.json"}
    warning = f"nothing in --format={export_format} says that the words were found with --pre_token"
    assert (warning in caplog.text) == (export_format != Format.HUGGINGFACE)
    if export_format == Format.HUGGINGFACE:
        card = (output_dir / "README.md").read_text("utf-8")
        assert "pip install 'transformers[torch]' fugashi unidic-lite`" in card
        assert "The words of Japanese text are found first, by fugashi" in card


def test_a_saved_model_is_refused_that_cannot_say_what_found_the_words(pretrained, tmp_path):
    tokenizer = dataclasses.replace(pretrained.tokenizer, pre_tokenizer=PreTokenizer.SUDACHI)
    japanese = dataclasses.replace(pretrained, tokenizer=tokenizer)
    with pytest.raises(UserError, match="--pre_tokenizer=sudachi: give --format=huggingface or"):
        export(japanese, tmp_path / "export", Format.SAVED_MODEL)
    assert not list(tmp_path.iterdir())


def without(pretrained, *prefixes):
    kept = {n: v for n, v in pretrained.weights.items() if not n.startswith(prefixes)}
    return dataclasses.replace(pretrained, weights=kept)


def contents(directory):
    """The bytes of each file in a directory."""
    paths = (path for path in directory.rglob("*") if path.is_file())
    return {str(path.relative_to(directory)): path.read_bytes() for path in paths}


def assert_same_weights(first, second):
    assert first.keys() == second.keys()
    for name, values in first.items():
        np.testing.assert_array_equal(values, second[name], name, strict=True)


# The content of an export.


@pytest.mark.parametrize("export_format", Format)
def test_the_directory_holds_the_files_of_its_format(run, exported, export_format):
    directory = exported(export_format)
    assert {path.name for path in directory.iterdir()} == FILES[export_format]
    assert (directory / "vocab.txt").read_bytes() == (run[0] / "vocab.txt").read_bytes()
    if export_format not in (Format.HUGGINGFACE, Format.ONNX):
        assert BertConfig.read(directory / "bert_config.json") == run[1].config
    assert [path.name for path in directory.parent.iterdir()] == [export_format]


@pytest.mark.parametrize("export_format", [Format.HUGGINGFACE, Format.ORIGINAL])
def test_weights_are_read_back_identical(pretrained, exported, export_format):
    read = read_pretrained(exported(export_format))
    assert_same_weights(read.weights, pretrained.weights)
    assert read.config == pretrained.config
    assert read.ignored == []
    assert read.tokenizer.tokens == pretrained.tokenizer.tokens
    assert read.tokenizer.do_lower_case == pretrained.tokenizer.do_lower_case


def test_successive_conversions_lose_nothing(tmp_path, pretrained, exported):
    first, second = exported(Format.ORIGINAL), tmp_path / "second"
    export(read_pretrained(first), tmp_path / "hf", Format.HUGGINGFACE)
    export(read_pretrained(tmp_path / "hf"), second, Format.ORIGINAL)
    assert_same_weights(read_pretrained(second).weights, pretrained.weights)
    for name in ("bert_config.json", "vocab.txt"):
        assert (second / name).read_bytes() == (first / name).read_bytes()
    # The Hugging Face directory does not record the step.
    assert tf.train.load_variable(str(first / "bert_model.ckpt"), "global_step") == 7
    names = {name for name, _ in tf.train.list_variables(str(second / "bert_model.ckpt"))}
    assert names == pretrained.weights.keys()


def test_a_keras_file_computes_the_same(run, exported, make_batch):
    # Keras knows the class because this module imports `modeling.bert_for_pretraining`.
    loaded = keras.saving.load_model(exported(Format.KERAS) / "model.keras")
    batch = make_batch(4)
    expected = run[1](batch)
    for name, output in loaded(batch).items():
        assert keras.backend.standardize_dtype(output.dtype) == "float32"
        np.testing.assert_allclose(output, expected[name], atol=1e-5, err_msg=name)


def test_a_keras_file_from_before_the_class_moved_is_loaded(tmp_path, run, exported, make_batch):
    """Its config.json names `modeling.pretraining`, where the class was defined then."""
    older = tmp_path / "older.keras"
    with (
        zipfile.ZipFile(exported(Format.KERAS) / "model.keras") as source,
        zipfile.ZipFile(older, "w") as target,
    ):
        for name in source.namelist():
            content = source.read(name)
            if name == "config.json":
                assert b"modeling.bert_for_pretraining" in content
                content = content.replace(b"modeling.bert_for_pretraining", b"modeling.pretraining")
            target.writestr(name, content)
    loaded = keras.saving.load_model(older)
    assert type(loaded) is type(run[1])
    batch = make_batch(4)
    expected = run[1](batch)
    for name, output in loaded(batch).items():
        np.testing.assert_allclose(output, expected[name], atol=1e-5, err_msg=name)


def test_an_average_is_exported_like_any_weights(tmp_path, pretrained):
    averaged = dataclasses.replace(
        pretrained, run=dataclasses.replace(pretrained.run, averaged=3), source="the mean of three"
    )
    export(averaged, tmp_path / "out", Format.HUGGINGFACE)
    assert_same_weights(read_pretrained(tmp_path / "out").weights, pretrained.weights)
    assert "not evaluated" in (tmp_path / "out" / "README.md").read_text("utf-8")


# Existing content of the output directory.


def test_an_empty_directory_is_used(tmp_path, pretrained, exported):
    export(pretrained, tmp_path, Format.ORIGINAL)
    assert contents(tmp_path) == contents(exported(Format.ORIGINAL))


@pytest.mark.parametrize("is_there", [True, False])
def test_a_link_stays_a_link(tmp_path, pretrained, exported, is_there):
    if is_there:
        shutil.copytree(exported(Format.HUGGINGFACE), tmp_path / "real")
    (tmp_path / "link").symlink_to("real")
    export(pretrained, tmp_path / "link", Format.ORIGINAL, overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real") == contents(exported(Format.ORIGINAL))
    assert {path.name for path in tmp_path.iterdir()} == {"link", "real"}


@pytest.mark.parametrize("earlier", [Format.HUGGINGFACE, Format.ORIGINAL, Format.SAVED_MODEL])
def test_an_earlier_export_is_replaced_completely_on_request(
    tmp_path, pretrained, exported, earlier
):
    output_dir = tmp_path / "out"
    shutil.copytree(exported(earlier), output_dir)
    before = contents(output_dir)
    other = dataclasses.replace(without(pretrained, "cls/"), sha256s={"weights": "other"})
    with pytest.raises(UserError, match=r"is not empty: .*--overwrite") as raised:
        export(other, output_dir, Format.ORIGINAL)
    assert str(output_dir) in str(raised.value)
    assert contents(output_dir) == before
    export(other, output_dir, Format.ORIGINAL, overwrite=True)
    assert {path.name for path in output_dir.iterdir()} == FILES[Format.ORIGINAL]
    assert_same_weights(read_pretrained(output_dir).weights, other.weights)
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("name", ["thesis.tex", "assets/thesis.tex", "variables/variables.tex"])
@pytest.mark.parametrize("overwrite", [False, True])
def test_other_files_are_never_touched(tmp_path, pretrained, exported, name, overwrite):
    shutil.copytree(exported(Format.ORIGINAL), tmp_path / "out")
    (tmp_path / "out" / name).parent.mkdir(exist_ok=True)
    (tmp_path / "out" / name).write_text("mine")
    before = contents(tmp_path)
    with pytest.raises(UserError, match=f"{name}, which is not part of an export") as raised:
        export(pretrained, tmp_path / "out", Format.ORIGINAL, overwrite=overwrite)
    assert str(tmp_path / "out") in str(raised.value)
    assert contents(tmp_path) == before


def test_a_link_in_the_output_is_never_followed(tmp_path, pretrained):
    (tmp_path / "mine").mkdir()
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "assets").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="assets, which is not part of an export"):
        export(pretrained, tmp_path / "out", Format.ORIGINAL, overwrite=True)
    assert (tmp_path / "mine").is_dir()


def test_a_run_is_not_overwritten(tmp_path, run, pretrained):
    copy = shutil.copytree(run[0], tmp_path / "run")
    with pytest.raises(UserError, match="not part of an export"):
        export(pretrained, copy, Format.ORIGINAL, overwrite=True)
    assert contents(copy) == contents(run[0])


@pytest.mark.parametrize("overwrite", [False, True])
def test_a_file_is_not_replaced(tmp_path, pretrained, overwrite):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(UserError, match="is a file") as raised:
        export(pretrained, tmp_path / "out", Format.ORIGINAL, overwrite=overwrite)
    assert str(tmp_path / "out") in str(raised.value)
    assert contents(tmp_path) == {"out": b"mine"}


def test_a_directory_that_cannot_be_created_is_reported(tmp_path, pretrained):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UserError, match="cannot write") as raised:
        export(pretrained, tmp_path / "file" / "out", Format.ORIGINAL)
    assert str(tmp_path / "file" / "out") in str(raised.value)
    assert contents(tmp_path) == {"file": b"mine"}


# The same export again.


@pytest.mark.parametrize("export_format", Format)
def test_the_same_export_again_finds_the_finished_one(
    tmp_path, pretrained, exported, export_format, monkeypatch
):
    output_dir = shutil.copytree(exported(export_format), tmp_path / "out")
    before = contents(tmp_path)
    monkeypatch.setattr(modeling.export.export, "write_directory", None)
    assert export(pretrained, output_dir, export_format) is False
    assert contents(tmp_path) == before


def test_a_description_is_of_sources_options_and_files(run, exported):
    directory = exported(Format.ORIGINAL)
    content = json.loads((directory / "export.json").read_text("utf-8"))
    assert content.pop("content_sha256")
    assert content.pop("sources") == {
        name: sha256_of(run[0] / name)
        for name in (
            "bert_config.json",
            "checkpoints/step-00000007/state.json",
            "checkpoints/step-00000007/weights.npz",
            "manifest.json",
            "vocab.txt",
        )
    }
    assert content == {
        "averaged": 1,
        "format": "original",
        "heads": False,
        "files": {
            name: sha256_of(directory / name) for name in FILES[Format.ORIGINAL] - {"export.json"}
        },
    }


def test_another_export_is_refused(tmp_path, pretrained, exported):
    output_dir = shutil.copytree(exported(Format.ORIGINAL), tmp_path / "out")
    before = contents(tmp_path)
    averaged = dataclasses.replace(pretrained.run, averaged=2)
    others = [
        (dataclasses.replace(pretrained, sha256s=pretrained.sha256s | {"vocab.txt": "other"}), {}),
        (dataclasses.replace(pretrained, run=averaged), {}),
        (pretrained, {"export_format": Format.KERAS}),
    ]
    for other, options in others:
        with pytest.raises(UserError, match="is not empty"):
            export(other, output_dir, **{"export_format": Format.ORIGINAL, **options})
    assert contents(tmp_path) == before


def test_new_results_make_another_model_card(tmp_path, run):
    copy = shutil.copytree(run[0], tmp_path / "run")
    output_dir = tmp_path / "out"
    assert export(read_pretrained(copy), output_dir, Format.HUGGINGFACE)
    assert not export(read_pretrained(copy), output_dir, Format.HUGGINGFACE)
    names = ("masked_lm_loss", "masked_lm_accuracy", "next_sentence_loss", "next_sentence_accuracy")
    results = {"step": 7, **dict.fromkeys(names, 0.5), "data_dir": "a", "manifest_sha256": "b"}
    write_json(copy / "eval_results.json", {"evaluations": [results]})
    with pytest.raises(UserError, match="is not empty"):
        export(read_pretrained(copy), output_dir, Format.HUGGINGFACE)
    assert export(read_pretrained(copy), output_dir, Format.HUGGINGFACE, overwrite=True)
    assert "0.5000 nats" in (output_dir / "README.md").read_text("utf-8")


@pytest.mark.parametrize("name", ["README.md", "tokenizer.json", "export.json"])
def test_a_changed_export_is_named_and_can_be_replaced(tmp_path, pretrained, exported, name):
    output_dir = shutil.copytree(exported(Format.HUGGINGFACE), tmp_path / "out")
    content = bytearray((output_dir / name).read_bytes())
    content[len(content) // 2] ^= 1
    (output_dir / name).write_bytes(content)
    with pytest.raises(UserError, match=f"{output_dir / name} is ") as raised:
        export(pretrained, output_dir, Format.HUGGINGFACE)
    assert "\n" not in str(raised.value)
    assert export(pretrained, output_dir, Format.HUGGINGFACE, overwrite=True)
    assert contents(output_dir) == contents(exported(Format.HUGGINGFACE))


def test_an_export_of_an_earlier_build_is_replaced_on_request(tmp_path, pretrained, exported):
    output_dir = shutil.copytree(exported(Format.HUGGINGFACE), tmp_path / "out")
    (output_dir / "export.json").unlink()
    with pytest.raises(UserError, match="is not empty"):
        export(pretrained, output_dir, Format.HUGGINGFACE)
    assert export(pretrained, output_dir, Format.HUGGINGFACE, overwrite=True)
    assert contents(output_dir) == contents(exported(Format.HUGGINGFACE))


# Failures while writing.


@pytest.mark.parametrize(
    ("error", "raised_then"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), UserError),
        (tf.errors.ResourceExhaustedError(None, None, "No space left on device"), UserError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["OSError", "OpError", "KeyboardInterrupt"],
)
@pytest.mark.parametrize("is_there", [False, True])
def test_a_failure_leaves_the_output_unchanged(
    tmp_path, pretrained, exported, monkeypatch, error, raised_then, is_there
):
    def write(prefix, *_):
        prefix.with_name("bert_model.ckpt.index").write_bytes(b"half")
        raise error

    output_dir = tmp_path / "out"
    if is_there:
        shutil.copytree(exported(Format.HUGGINGFACE), output_dir)
    before = contents(tmp_path)
    monkeypatch.setattr(modeling.export.export, "write_original", write)
    with pytest.raises(raised_then) as raised:
        export(pretrained, output_dir, Format.ORIGINAL, overwrite=True)
    if raised_then is UserError:
        assert f"cannot write {output_dir}" in str(raised.value)
        assert "No space left on device" in str(raised.value)
    assert contents(tmp_path) == before
    assert [path.name for path in tmp_path.iterdir()] == ["out"][: int(is_there)]


def test_the_source_of_an_export_is_not_overwritten(tmp_path, exported):
    copy = shutil.copytree(exported(Format.ORIGINAL), tmp_path / "copy")
    before = contents(copy)
    with pytest.raises(UserError, match="would damage"):
        export(read_pretrained(copy), copy, Format.HUGGINGFACE, overwrite=True)
    assert contents(copy) == before


def test_an_output_that_contains_the_source_is_refused(tmp_path, pretrained, exported):
    output_dir = shutil.copytree(exported(Format.ORIGINAL), tmp_path / "out")
    inside = dataclasses.replace(pretrained, directory=output_dir / "variables")
    with pytest.raises(UserError, match="would damage"):
        export(inside, output_dir, Format.KERAS, overwrite=True)
    assert contents(output_dir) == contents(exported(Format.ORIGINAL))


def test_an_output_among_the_checkpoints_of_the_run_is_refused(run, pretrained):
    with pytest.raises(UserError, match="would damage"):
        export(pretrained, run[0] / "checkpoints" / "step-00000099", Format.ORIGINAL)
    assert [path.name for path in (run[0] / "checkpoints").iterdir()] == ["step-00000007"]


def test_leftovers_of_an_earlier_build_are_ignored(tmp_path, pretrained, exported):
    shutil.copytree(exported(Format.ORIGINAL), tmp_path / "out" / "export.0123abcd.tmp")
    export(pretrained, tmp_path / "out", Format.ORIGINAL)
    assert contents(tmp_path / "out") == contents(exported(Format.ORIGINAL))


@pytest.mark.parametrize("export_format", [Format.HUGGINGFACE, Format.ORIGINAL, Format.KERAS])
def test_heads_flag_is_refused_for_formats_that_always_include_them(
    tmp_path, pretrained, export_format
):
    with pytest.raises(UserError, match=f"leave out --heads: --format={export_format} always"):
        export(pretrained, tmp_path / "out", export_format, heads=True)


# Missing parts.


@pytest.mark.parametrize("export_format", [Format.HUGGINGFACE, Format.ORIGINAL])
def test_missing_variables_are_logged_by_name(tmp_path, pretrained, caplog, export_format):
    lacking = without(pretrained, "cls/seq_relationship", "bert/pooler/dense/bias")
    export(lacking, tmp_path / "out", export_format)
    missing = [name for name in pretrained.weights if name not in lacking.weights]
    assert len(missing) == 3
    (warning,) = (line for line in caplog.messages if pretrained.source in line)
    assert warning.endswith(f"and so will the export: {', '.join(missing)}")
    assert_same_weights(read_pretrained(tmp_path / "out").weights, lacking.weights)


@pytest.mark.parametrize(
    ("export_format", "heads", "missing"),
    [
        (Format.KERAS, False, "cls/seq_relationship/output_bias"),
        (Format.KERAS, False, "bert/pooler/dense/kernel"),
        (Format.ONNX, False, "bert/embeddings/LayerNorm/beta"),
        (Format.ONNX, True, "cls/predictions/output_bias"),
        (Format.SAVED_MODEL, False, "bert/pooler/dense/kernel"),
        (Format.SAVED_MODEL, True, "cls/predictions/output_bias"),
    ],
)
def test_a_missing_variable_that_the_format_needs_is_named(
    tmp_path, pretrained, export_format, heads, missing
):
    if export_format == Format.ONNX:
        pytest.importorskip("onnx")
    with pytest.raises(UserError, match=f"no variable {missing}, .*={export_format} ") as raised:
        export(without(pretrained, missing), tmp_path / "out", export_format, heads)
    assert pretrained.source in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export_format", [Format.ONNX, Format.SAVED_MODEL])
def test_an_encoder_alone_is_enough_without_heads(tmp_path, pretrained, monkeypatch, export_format):
    if export_format == Format.ONNX:
        pytest.importorskip("onnx")
    written = []
    monkeypatch.setattr(
        modeling.export.export, "_write", lambda *arguments: written.append(arguments)
    )
    export(without(pretrained, "cls/"), tmp_path / "out", export_format)
    assert written


@pytest.mark.parametrize(("heads", "outputs"), [(False, ["last_hidden_state"]), (True, ["logits"])])
def test_onnx_needs_no_pooler(tmp_path, pretrained, caplog, heads, outputs):
    onnx = pytest.importorskip("onnx")
    without_pooler = without(pretrained, "bert/pooler/")
    export(without_pooler, tmp_path / "out", Format.ONNX, heads)
    graph = onnx.load(tmp_path / "out" / "model.onnx").graph
    assert [output.name for output in graph.output] == outputs
    assert "bert/pooler/dense/kernel" in caplog.text
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["architectures"] == ["BertForMaskedLM" if heads else "BertModel"]


def test_ignored_tensors_are_logged(tmp_path, pretrained, caplog):
    fine_tuned = dataclasses.replace(pretrained, ignored=["classifier.bias", "classifier.weight"])
    export(fine_tuned, tmp_path / "out", Format.HUGGINGFACE)
    (warning,) = (line for line in caplog.messages if line.startswith("left out"))
    assert warning.endswith("BERT: classifier.bias, classifier.weight")


@pytest.mark.parametrize(
    ("change", "is_warned"),
    [({}, True), ({"gelu_form": GeluForm.TANH}, False), ({"hidden_act": "relu"}, False)],
)
def test_an_activation_that_the_original_lacks_is_logged(
    tmp_path, pretrained, caplog, change, is_warned
):
    config = dataclasses.replace(pretrained.config, **change)
    export(dataclasses.replace(pretrained, config=config), tmp_path / "out", Format.ORIGINAL)
    assert any("the tanh approximation" in line for line in caplog.messages) == is_warned


@pytest.mark.parametrize("export_format", QUICK)
def test_a_vocabulary_of_another_model_is_refused(tmp_path, pretrained, export_format):
    tokens = [*pretrained.tokenizer.tokens, "more"]
    tokenizer = dataclasses.replace(pretrained.tokenizer, tokens=tokens)
    with pytest.raises(UserError, match=r"vocab\.txt has 51 tokens, but .* for 50"):
        export(
            dataclasses.replace(pretrained, tokenizer=tokenizer), tmp_path / "out", export_format
        )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("export_format", QUICK)
def test_a_bert_without_a_vocabulary_is_refused(tmp_path, pretrained, export_format):
    with pytest.raises(UserError, match=r"has no vocabulary: copy its vocab\.txt") as raised:
        export(dataclasses.replace(pretrained, tokenizer=None), tmp_path / "out", export_format)
    assert pretrained.source in str(raised.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("export_format", "package"),
    [
        (Format.HUGGINGFACE, "safetensors"),
        (Format.HUGGINGFACE, "tokenizers"),
        (Format.ONNX, "onnx"),
    ],
)
def test_a_missing_package_is_reported_with_the_command_to_install_it(
    tmp_path, monkeypatch, export_format, package
):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=r"pip install 'clozemill\[export\]'") as raised:
        check_output(tmp_path / "out", export_format, overwrite=False)
    assert f"--format={export_format} needs the package {package}" in str(raised.value)


@pytest.mark.parametrize("export_format", [Format.ORIGINAL, Format.KERAS, Format.SAVED_MODEL])
def test_other_formats_need_no_package(tmp_path, monkeypatch, export_format):
    for package in ("safetensors", "tokenizers", "onnx"):
        monkeypatch.setitem(sys.modules, package, None)
    check_output(tmp_path / "out", export_format, overwrite=False)
