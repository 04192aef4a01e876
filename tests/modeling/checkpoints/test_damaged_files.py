"""Damages each file of a foreign checkpoint in many ways: one line says so, or it is read."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from modeling.checkpoints.foreign_files import Description, checked_sha256s
from modeling.checkpoints.huggingface import write_huggingface
from modeling.checkpoints.pretrained import read_pretrained
from modeling.checkpoints.tensorflow1 import write_original
from modeling.checkpoints.tokenizer_settings import (
    TokenizerSettings,
    write_tokenizer,
    write_vocabulary,
)
from modeling.config import weight_shapes
from pipeline.errors import UserError
from pipeline.json_files import write_json

pytestmark = pytest.mark.no_backend

MUTATIONS_PER_FILE = 40
DEPTH = 100_000
TOKENS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *(f"word{i}" for i in range(45))]
VALUES = [
    *("null", "true", "false", "[]", "{}", '""', '"x"', "0", "-1", "1.5", "[[1]]", "NaN"),
    *("1e999", "-1" + 30 * "0", 5000 * "9", r'"\ud800"', r'"\u0000"', r'"two\nlines"'),
    *(DEPTH * "[" + DEPTH * "]", 500 * '{"a":' + "1" + 500 * "}"),
]
FILES = {
    "huggingface": [
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "vocab.txt",
    ],
    "original": [
        "bert_config.json",
        "bert_model.ckpt.data-00000-of-00001",
        "bert_model.ckpt.index",
        "checkpoint",
        "vocab.txt",
    ],
}


@pytest.fixture(scope="module")
def pristine(tmp_path_factory, shallow_config):
    """Directories of both kinds, not to be changed."""
    folder = tmp_path_factory.mktemp("pristine")
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape).astype(np.float32)
        for name, shape in weight_shapes(shallow_config).items()
    }
    tokenizer = TokenizerSettings(Path("tokenizer.json"), TOKENS, True, None)
    for kind in FILES:
        (folder / kind).mkdir()
    write_huggingface(folder / "huggingface", shallow_config, weights)
    write_tokenizer(folder / "huggingface", tokenizer, 16)
    write_original(folder / "original" / "bert_model.ckpt", weights, step=7)
    write_vocabulary(folder / "original", tokenizer)
    (folder / "original" / "bert_config.json").write_text(shallow_config.to_json())
    state = 'model_checkpoint_path: "bert_model.ckpt"\n'
    (folder / "original" / "checkpoint").write_text(state)
    return folder


def with_value(content, rng):
    """Replaces a value of a JSON text by another one, or sometimes a name by one of two lines."""
    root, mark = json.loads(content), "A MARK THAT NO FILE HOLDS"
    places = []

    def collect(node):
        for key in node.keys() if isinstance(node, dict) else range(len(node)):
            places.append((node, key))
            if isinstance(node[key], dict | list):
                collect(node[key])

    collect(root)
    node, key = rng.choice(places)
    if isinstance(node, dict) and rng.random() < 0.1:
        node["two\nlines"] = node.pop(key)
    else:
        node[key] = mark
    return json.dumps(root).replace(f'"{mark}"', rng.choice(VALUES)).encode()


def header_with_value(content, rng):
    """Does so in the header of a safetensors file, whose length it corrects."""
    length = int.from_bytes(content[:8], "little")
    header = with_value(content[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + content[8 + length :]


def mutate(name, content, rng):
    """A way to damage a file, and its damaged content."""
    start, end = sorted(rng.randrange(len(content) + 1) for _ in range(2))
    block = content[start:end]
    flipped = bytearray(content)
    flipped[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
    ways = {
        "a bit flipped": lambda: bytes(flipped),
        "truncated": lambda: content[:start],
        "a block twice": lambda: content[:end] + block + content[end:],
        "a block deleted": lambda: content[:start] + content[end:],
        "random bytes": lambda: content[:start] + rng.randbytes(end - start) + content[end:],
        "NUL bytes": lambda: content[:start] + bytes(end - start) + content[end:],
        "not UTF-8": lambda: content[:start] + b"\xff\xfe" + content[start:],
        "empty": lambda: b"",
        "another format": lambda: rng.choice([b"null", b"[]", b'"x"', b"{}", b"PK\x03\x04", b"\n"]),
        "a long number": lambda: content[:start] + 5000 * b"9" + content[start:],
    }
    if name.endswith(".json"):
        # Twice, because most damage is of this kind.
        ways |= dict.fromkeys("ab", lambda: with_value(content, rng))
    elif name.endswith(".safetensors"):
        ways |= dict.fromkeys("ab", lambda: header_with_value(content, rng))
    way = rng.choice(sorted(ways))
    return way, ways[way]()


def is_read(read, directory, what):
    """Whether reading succeeds; if not, checks that one line with the directory's name says why."""
    try:
        read()
    except UserError as error:
        message = str(error)
    else:
        return True
    assert str(directory) in message, what
    assert "\n" not in message, what
    assert len(message) < 2000, what
    return False


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in FILES.items() for name in names]
)
def test_damage_of_any_file_is_named(tmp_path, pristine, kind, name):
    directory = shutil.copytree(pristine / kind, tmp_path / kind)
    content = (directory / name).read_bytes()
    assert is_read(lambda: read_pretrained(directory), directory, "undamaged")
    outcomes = []
    for number in range(MUTATIONS_PER_FILE):
        way, damaged = mutate(name, content, random.Random(f"{kind} {name} {number}"))
        (directory / name).write_bytes(damaged)
        what = f"{name}, mutation {number}, {way}"
        outcomes.append(is_read(lambda: read_pretrained(directory), directory, what))
    assert False in outcomes


def test_damage_of_a_description_is_named(tmp_path):
    files = dict.fromkeys(FILES["original"], 64 * "0")
    path = tmp_path / "export.json"
    write_json(path, vars(Description({"weights.npz": 64 * "1"}, 1, "original", False, files)))
    content = path.read_bytes()
    for number in range(MUTATIONS_PER_FILE):
        way, damaged = mutate(path.name, content, random.Random(number))
        path.write_bytes(damaged)
        accepted = is_read(lambda: checked_sha256s(tmp_path, []), path, way)
        # Without a digest, it counts as that of an earlier build.
        assert not accepted or damaged == content or b"content_sha256" not in damaged


@pytest.mark.parametrize("make", [Path.mkdir, os.mkfifo])
@pytest.mark.parametrize("kind", FILES)
def test_something_else_in_place_of_any_file_is_named(tmp_path, pristine, kind, make):
    for name in FILES[kind]:
        directory = shutil.copytree(pristine / kind, tmp_path / name)
        (directory / name).unlink()
        make(directory / name)
        with pytest.raises(UserError, match=f"{directory / name} is not a regular file"):
            read_pretrained(directory)
