"""Trained BERTs of each kind on a store: read as on a disk, and no more of them than is needed."""

import shutil
from functools import partial

import numpy as np
import pytest

from modeling.checkpoints.pretrained import lacks_config, read_average, read_pretrained
from modeling.checkpoints.run_checkpoints import checkpoint_of_step, list_checkpoints
from modeling.export.export import check_output, export
from modeling.export.formats import Format
from modeling.training.resume import read_branch
from pipeline.errors import UserError
from pipeline.files import send_directory
from pipeline.storage import location

pytestmark = pytest.mark.no_backend
LAST = {"run": "manifest.json", "huggingface": "config.json", "original": "vocab.txt"}


@pytest.fixture
def store(server, monkeypatch, tmp_path):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    yield server
    server.reset()
    assert not list(tmp_path.glob("clozemill*"))


@pytest.fixture
def bucket(store):
    return location(store.make_bucket())


@pytest.fixture(scope="module")
def places(tmp_path_factory, config, write_run):
    """Directories of each kind, not to be changed."""
    folder = tmp_path_factory.mktemp("places")
    write_run(folder / "run", config, step=6, earlier_steps=(2, 4))
    pretrained = read_pretrained(folder / "run")
    for kind in (Format.HUGGINGFACE, Format.ORIGINAL):
        export(pretrained, folder / kind, kind)
    return folder


def send(directory, url):
    send_directory(directory, url, LAST[directory.name])
    return url


def assert_same(pretrained, other):
    assert pretrained.weights.keys() == other.weights.keys()
    for name, values in other.weights.items():
        np.testing.assert_array_equal(pretrained.weights[name], values, name)
    assert pretrained.config == other.config
    assert pretrained.tokenizer.tokens == other.tokenizer.tokens
    assert pretrained.sha256s == other.sha256s


@pytest.mark.parametrize("kind", LAST)
def test_all_kinds_are_read_as_on_a_disk(kind, places, bucket):
    url = send(places / kind, bucket / "deep" / kind)
    pretrained = read_pretrained(url)
    assert_same(pretrained, read_pretrained(places / kind))
    assert str(url) in pretrained.source
    assert not lacks_config(url)


def test_a_prefix_names_an_original_checkpoint(places, bucket):
    url = send(places / "original", bucket / "original")
    for name in ("bert_model.ckpt", "bert_model.ckpt.index"):
        assert_same(read_pretrained(url / name), read_pretrained(places / "original" / name))


def test_only_what_is_needed_of_a_run_is_fetched(places, bucket, store):
    url = send(places / "run", bucket / "run")
    store.requests.clear()
    read_pretrained(url)
    read = [
        path.rpartition("/checkpoints/")[2] for method, path in store.requests if method == "GET"
    ]
    assert [name for name in read if name.endswith("npz")] == ["step-00000006/weights.npz"]
    store.requests.clear()
    assert read_branch(url / "checkpoints" / "step-00000004").state.step == 4
    assert not [path for _, path in store.requests if path.endswith("npz")]


def test_a_checkpoint_of_a_run_and_the_mean_of_several(places, bucket):
    url, directory = send(places / "run", bucket / "run"), places / "run"
    checkpoint = checkpoint_of_step(url, 4)
    assert_same(read_pretrained(checkpoint), read_pretrained(list_checkpoints(directory)[1]))
    assert_same(read_average(url, 2), read_average(directory, 2))
    with pytest.raises(UserError, match=r"holds no checkpoint of step 5; it holds step-0.*6$"):
        checkpoint_of_step(url, 5)


def test_what_is_wrong_names_the_url(places, bucket, tmp_path):
    with pytest.raises(UserError, match=f"^{bucket}/nothing is not a trained BERT"):
        read_pretrained(bucket / "nothing")
    broken = shutil.copytree(places / "huggingface", tmp_path / "huggingface")
    (broken / "export.json").unlink()
    (broken / "model.safetensors").write_bytes(b"no tensors")
    url = send(broken, bucket / "broken")
    with pytest.raises(UserError, match=f"cannot read {url}/model.safetensors"):
        read_pretrained(url)
    broken = shutil.copytree(places / "original", tmp_path / "original")
    (broken / "export.json").unlink()
    (broken / "bert_model.ckpt.index").write_bytes(b"no index")
    url = send(broken, bucket / "damaged")
    with pytest.raises(UserError, match=f"original checkpoint {url}/bert_model.ckpt is damaged"):
        read_pretrained(url)


def test_an_export_to_a_store_is_recognized_and_can_be_replaced(places, bucket, store):
    source, other = read_pretrained(places / "run"), read_average(places / "run", 3)
    output = bucket / "out"
    store.requests.clear()
    assert export(source, output, Format.HUGGINGFACE)
    sent = [path.rpartition("/")[2] for method, path in store.requests if method == "PUT"]
    assert sent[-1] == "model.safetensors"
    assert_same(read_pretrained(output), read_pretrained(places / "huggingface"))
    assert not export(source, output, Format.HUGGINGFACE)
    with pytest.raises(UserError, match=f"^{output} is not empty: .*--overwrite"):
        export(other, output, Format.HUGGINGFACE)
    assert export(other, output, Format.ORIGINAL, overwrite=True)
    assert {path.name for path in output.rglob("*")} == {
        *("bert_config.json", "vocab.txt", "export.json", "bert_model.ckpt.index"),
        "bert_model.ckpt.data-00000-of-00001",
    }
    assert not export(other, output, Format.ORIGINAL)


def test_files_of_others_on_a_store_are_left_alone(places, bucket):
    pretrained = read_pretrained(places / "run")
    (bucket / "mine" / "notes.txt").upload(b"mine")
    (bucket / "downloaded" / "model.safetensors").upload(b"mine")
    for name, reason in (("mine", "holds notes.txt"), ("downloaded", "is not empty")):
        with pytest.raises(UserError, match=f"^{bucket}/{name} {reason}"):
            export(pretrained, bucket / name, Format.HUGGINGFACE)
    with pytest.raises(UserError, match=r"holds notes\.txt"):
        check_output(bucket / "mine", Format.HUGGINGFACE, overwrite=True)


def test_an_export_that_would_damage_its_run_is_refused(places, bucket):
    url = send(places / "run", bucket / "runs" / "run")
    pretrained = read_pretrained(url)
    write = partial(export, pretrained, export_format=Format.ORIGINAL)
    with pytest.raises(UserError, match="would damage"):
        write(url / "checkpoints" / "out")
    assert write(url / "out")


def test_an_export_that_was_cut_off_is_finished_by_the_same_command(places, bucket, store):
    pretrained = read_pretrained(places / "run")
    store.before = lambda _number, method, path: (
        403 if method == "PUT" and path.endswith("tokenizer.json") else None
    )
    with pytest.raises(UserError, match=f"^cannot write {bucket}/out: "):
        export(pretrained, bucket / "out", Format.HUGGINGFACE)
    assert not (bucket / "out" / "model.safetensors").exists()
    store.reset()
    assert export(pretrained, bucket / "out", Format.HUGGINGFACE)
    assert_same(read_pretrained(bucket / "out"), read_pretrained(places / "huggingface"))
    assert not (bucket / "out" / "unfinished_export").exists()
