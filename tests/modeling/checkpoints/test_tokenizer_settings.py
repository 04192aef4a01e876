import dataclasses
import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from modeling.checkpoints.tokenizer_settings import (
    AddedToken,
    TokenizerSettings,
    read_tokenizer_settings,
    read_tokens,
    write_tokenizer,
    write_vocabulary,
)
from pipeline.errors import UserError
from pipeline.manifest import Manifest
from pipeline.pre_tokenizers import PreTokenizer

pytestmark = pytest.mark.no_backend

SHARED_VOCABULARIES = Path(__file__).resolve().parents[4] / "shared" / "vocab"
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
# Some tokens are not lower case, though all text is.
LOWER_CASE = [*SPECIAL, "[unused1]", "<S>", "<T>", "mill", "##s", "é", "水", "[", "<", ""]
CASED = [*LOWER_CASE, "Mill"]


@pytest.fixture
def write(tmp_path):
    """A function that writes any of vocab.txt, tokenizer.json and tokenizer_config.json."""

    def write_files(tokens=None, tokenizer=None, config=None):
        if tokens is not None:
            (tmp_path / "vocab.txt").write_text("\n".join(tokens) + "\n", "utf-8")
        if tokenizer is not None:
            (tmp_path / "tokenizer.json").write_text(json.dumps(tokenizer), "utf-8")
        if config is not None:
            (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), "utf-8")
        return tmp_path

    return write_files


@pytest.fixture
def output_dir(tmp_path):
    directory = tmp_path / "output"
    directory.mkdir()
    return directory


def tokenizer_json(tokens, **normalizer):
    ids = {token: number for number, token in enumerate(tokens)}
    backwards = dict(reversed(ids.items()))
    return {
        "normalizer": normalizer or None,
        "model": {"type": "WordPiece", "vocab": backwards},
    }


@pytest.mark.parametrize(
    ("do_lower_case", "strip_accents"), [(True, None), (False, None), (True, False), (False, True)]
)
def test_manifest_decides_for_a_run(write, data_set, do_lower_case, strip_accents):
    directory = write(CASED if do_lower_case else LOWER_CASE, config={"do_lower_case": None})
    manifest = dataclasses.replace(
        data_set.manifest, do_lower_case=do_lower_case, strip_accents=strip_accents
    )
    settings = read_tokenizer_settings(directory, manifest)
    assert (settings.do_lower_case, settings.strip_accents) == (do_lower_case, strip_accents)
    assert settings.vocabulary == directory / "vocab.txt"


@pytest.mark.parametrize(("tokens", "do_lower_case"), [(LOWER_CASE, True), (CASED, False)])
def test_tokens_decide_for_an_original_checkpoint(write, tokens, do_lower_case):
    directory = write(tokens)
    assert read_tokenizer_settings(directory) == TokenizerSettings(
        directory / "vocab.txt", tokens, do_lower_case, None, are_guessed=True
    )


@pytest.mark.skipif(not SHARED_VOCABULARIES.exists(), reason="needs ../shared (whole vocabularies)")
@pytest.mark.parametrize(
    ("name", "do_lower_case"),
    [
        ("bert-base-uncased", True),
        ("bert-base-cased", False),
        ("bert-base-chinese", True),
        ("bert-base-multilingual-cased", False),
    ],
)
def test_case_of_published_vocabularies_is_recognized(tmp_path, name, do_lower_case):
    (tmp_path / "vocab.txt").symlink_to(SHARED_VOCABULARIES / f"{name}.txt")
    settings = read_tokenizer_settings(tmp_path)
    assert (settings.do_lower_case, settings.strip_accents) == (do_lower_case, None)


@pytest.mark.parametrize("tokens", [LOWER_CASE, CASED])
@pytest.mark.parametrize("do_lower_case", [True, False])
@pytest.mark.parametrize("strip_accents", [None, True, False])
def test_config_decides_for_a_hugging_face_directory(write, tokens, do_lower_case, strip_accents):
    others = tokenizer_json(tokens, lowercase=not do_lower_case, strip_accents=True)
    config = {"do_lower_case": do_lower_case, "strip_accents": strip_accents}
    settings = read_tokenizer_settings(write(tokens, others, config))
    assert (settings.do_lower_case, settings.strip_accents) == (do_lower_case, strip_accents)


@pytest.mark.parametrize("config", [None, {"model_max_length": 512}])
@pytest.mark.parametrize("strip_accents", [None, True, False])
def test_tokenizer_decides_if_the_config_does_not(write, config, strip_accents):
    tokenizer = tokenizer_json(CASED, lowercase=True, strip_accents=strip_accents)
    directory = write(tokenizer=tokenizer, config=config)
    assert read_tokenizer_settings(directory) == TokenizerSettings(
        directory / "tokenizer.json", CASED, True, strip_accents
    )


@pytest.mark.parametrize("config", [None, {"model_max_length": 512}])
@pytest.mark.parametrize(("tokens", "do_lower_case"), [(LOWER_CASE, True), (CASED, False)])
def test_tokens_decide_if_no_file_does(write, config, tokens, do_lower_case):
    settings = read_tokenizer_settings(write(tokenizer=tokenizer_json(tokens), config=config))
    assert (settings.do_lower_case, settings.strip_accents) == (do_lower_case, None)


def test_vocab_txt_takes_precedence_over_tokenizer_json(write):
    directory = write(LOWER_CASE, tokenizer_json([*SPECIAL, "other"]))
    assert read_tokenizer_settings(directory).tokens == LOWER_CASE
    assert read_tokenizer_settings(directory).vocabulary == directory / "vocab.txt"


def test_a_directory_without_vocabulary_has_none(write):
    assert read_tokenizer_settings(write(config={"do_lower_case": True})) is None


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("vocab.txt", b"[PAD]\n\xff\n"),
        ("tokenizer.json", b"{"),
        ("tokenizer.json", b"\xff"),
        ("tokenizer_config.json", b"{"),
        ("tokenizer_config.json", b'{"do_lower_case": "yes"}'),
        ("tokenizer_config.json", b'{"strip_accents": [true]}'),
        ("tokenizer_config.json", b'{"tokenizer_class": 7}'),
        ("tokenizer_config.json", 100_000 * b'{"a":' + b"1" + 100_000 * b"}"),
        ("tokenizer_config.json", b"[]"),
        ("tokenizer.json", b'{"model": {"vocab": {}}, "normalizer": ["NFD"]}'),
        ("tokenizer.json", b'{"model": {"vocab": {}}, "normalizer": {"lowercase": "yes"}}'),
        ("tokenizer.json", b'{"model": {"vocab": {}}, "added_tokens": [{"id": true}]}'),
        ("tokenizer.json", b'{"model": {"vocab": {"a": "0"}}}'),
    ],
)
def test_a_damaged_file_is_named(write, name, content):
    directory = write(LOWER_CASE)
    (directory / name).write_bytes(content)
    with pytest.raises(UserError) as raised:
        read_tokenizer_settings(directory)
    assert str(directory / name) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_setting_that_is_null_is_ignored(write):
    directory = write(CASED, config={"do_lower_case": None})
    assert read_tokenizer_settings(directory).do_lower_case is False


@pytest.mark.parametrize("place", ["tokenizer_config", "normalizer"])
def test_setting_not_to_split_ideographs_is_kept(write, output_dir, place):
    if place == "normalizer":
        directory = write(None, tokenizer_json(LOWER_CASE, handle_chinese_chars=False))
    else:
        directory = write(LOWER_CASE, config={"tokenize_chinese_chars": False})
    settings = read_tokenizer_settings(directory)
    write_tokenizer(output_dir, settings, 16)
    assert read_tokenizer_settings(output_dir).tokenize_chinese_chars is False
    assert Tokenizer.from_file(str(output_dir / "tokenizer.json")).encode("水mill").tokens == [
        "[CLS]",
        "[UNK]",
        "[SEP]",
    ]


@pytest.mark.parametrize("with_vocabulary", [True, False])
def test_added_tokens_come_last(write, output_dir, with_vocabulary):
    tokenizer = tokenizer_json(LOWER_CASE)
    tokenizer["added_tokens"] = [
        {"id": 0, "content": "[PAD]"},
        {"id": len(LOWER_CASE), "content": "newword"},
    ]
    directory = write(LOWER_CASE if with_vocabulary else None, tokenizer)
    settings = read_tokenizer_settings(directory)
    assert settings.tokens == [*LOWER_CASE, "newword"]
    write_tokenizer(output_dir, settings, 16)
    assert read_tokens(output_dir / "vocab.txt") == settings.tokens


ADDED = {"content": "New Word", "lstrip": True, "normalized": False, "special": True}


def write_added_tokens_json(directory):
    (directory / "added_tokens.json").write_text(json.dumps({"New Word": len(LOWER_CASE)}))


def write_added_tokens_decoder(directory):
    decoder = {"added_tokens_decoder": {"0": {"content": "[PAD]"}, str(len(LOWER_CASE)): ADDED}}
    (directory / "tokenizer_config.json").write_text(json.dumps(decoder))


def write_added_tokens_of_tokenizer_json(directory):
    tokenizer = tokenizer_json(LOWER_CASE)
    tokenizer["added_tokens"] = [{"id": len(LOWER_CASE), **ADDED}]
    (directory / "tokenizer.json").write_text(json.dumps(tokenizer))


@pytest.mark.parametrize(
    "write_added",
    [
        write_added_tokens_json,
        write_added_tokens_decoder,
        write_added_tokens_of_tokenizer_json,
    ],
)
def test_added_tokens_stay_added_tokens(write, write_added, output_dir, tmp_path):
    directory = write(LOWER_CASE)
    write_added(directory)
    settings = read_tokenizer_settings(directory)
    assert settings.tokens == [*LOWER_CASE, "New Word"]
    flags = {} if write_added == write_added_tokens_json else ADDED
    assert settings.added_tokens == {
        len(LOWER_CASE): AddedToken(**{"content": "New Word", **flags})
    }
    write_tokenizer(output_dir, settings, 16)
    tokenizer = Tokenizer.from_file(str(output_dir / "tokenizer.json"))
    assert tokenizer.encode("mill New Word").ids[2] == len(LOWER_CASE)
    is_found_in_lower_case = tokenizer.encode("mill new words").ids[2] == len(LOWER_CASE)
    assert is_found_in_lower_case != bool(flags)
    # An export of the export is the same.
    (again := tmp_path / "again").mkdir()
    write_tokenizer(again, read_tokenizer_settings(output_dir), 16)
    for path in output_dir.iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes()


def test_a_token_among_the_word_pieces_may_be_an_added_one(write, output_dir):
    tokenizer = tokenizer_json(LOWER_CASE)
    number = LOWER_CASE.index("mill")
    tokenizer["added_tokens"] = [{"id": number, "content": "mill", "single_word": True}]
    settings = read_tokenizer_settings(write(LOWER_CASE, tokenizer))
    write_tokenizer(output_dir, settings, 16)
    written = json.loads((output_dir / "tokenizer.json").read_text("utf-8"))
    assert written["model"]["vocab"]["mill"] == number
    assert [t["single_word"] for t in written["added_tokens"] if t["id"] == number] == [True]


def test_another_kind_of_vocabulary_is_an_error(write):
    for kind, vocabulary in (("BPE", {"a": 0}), ("Unigram", [["a", 0.5]])):
        tokenizer = {"model": {"type": kind, "vocab": vocabulary}}
        with pytest.raises(UserError, match=f"json is of the type '{kind}', not WordPiece"):
            read_tokenizer_settings(write(None, tokenizer))


def test_another_class_of_tokenizer_gives_a_warning(write, caplog):
    read_tokenizer_settings(write(LOWER_CASE, config={"tokenizer_class": "BertTokenizer"}))
    assert not caplog.records
    read_tokenizer_settings(write(LOWER_CASE, config={"tokenizer_class": "BertJapaneseTokenizer"}))
    assert "BertJapaneseTokenizer" in caplog.text


UNIDIC, IPADIC = {"mecab_dic": "unidic_lite"}, {"mecab_dic": "ipadic"}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"word_tokenizer_type": "mecab", "mecab_kwargs": UNIDIC}, PreTokenizer.MECAB),
        ({"word_tokenizer_type": "mecab", "mecab_kwargs": IPADIC}, PreTokenizer.MECAB_IPADIC),
        ({"word_tokenizer_type": "sudachi"}, PreTokenizer.SUDACHI),
        (
            {
                "word_tokenizer_type": "sudachi",
                "sudachi_kwargs": {"sudachi_split_mode": "A", "trim_whitespace": False},
                "subword_tokenizer_type": "wordpiece",
            },
            PreTokenizer.SUDACHI,
        ),
        ({"word_tokenizer_type": "sudachi", "sudachi_kwargs": {"sudachi_split_mode": "C"}}, None),
        ({"word_tokenizer_type": "mecab"}, None),  # versions of transformers have other defaults
        ({"word_tokenizer_type": "mecab", "mecab_kwargs": {"mecab_dic": "unidic"}}, None),
        (
            {"word_tokenizer_type": "mecab", "mecab_kwargs": {**UNIDIC, "normalize_text": False}},
            None,
        ),
        (
            {
                "word_tokenizer_type": "mecab",
                "mecab_kwargs": UNIDIC,
                "subword_tokenizer_type": "character",
            },
            None,
        ),
        ({"word_tokenizer_type": "basic"}, None),
    ],
)
@pytest.mark.parametrize("names_class", [True, False])
def test_the_words_of_a_japanese_tokenizer_are_known(config, names_class, expected, write, caplog):
    """Old models name the class in their config.json alone."""
    named = {"tokenizer_class": "BertJapaneseTokenizer"} if names_class else {}
    settings = read_tokenizer_settings(write(LOWER_CASE, config={**named, **config}))
    assert settings.pre_tokenizer == expected
    assert ("only its vocabulary is used" in caplog.text) == (expected is None)
    assert settings.are_guessed == (expected is None)
    if expected:
        assert (settings.do_lower_case, settings.strips_accents) == (False, False)
        assert not settings.tokenize_chinese_chars


@pytest.mark.parametrize("pre_tokenizer", PreTokenizer)
@pytest.mark.parametrize("do_lower_case", [False, True])
def test_the_words_of_japanese_text_are_written(pre_tokenizer, do_lower_case, write, output_dir):
    manifest = Manifest(
        8, 1, do_lower_case, 1, "", {"pre_tokenizer": pre_tokenizer}, {}, [], strip_accents=False
    )
    settings = read_tokenizer_settings(write(LOWER_CASE), manifest)
    assert settings.pre_tokenizer == pre_tokenizer
    write_tokenizer(output_dir, settings, 16)
    assert {path.name for path in output_dir.iterdir()} == {"vocab.txt", "tokenizer_config.json"}
    again = read_tokenizer_settings(output_dir)
    assert dataclasses.replace(again, vocabulary=settings.vocabulary) == settings


@pytest.mark.parametrize(
    "content", [{}, [], {"model": None}, {"model": {}}, {"model": {"vocab": [["a", 0.5]]}}]
)
def test_a_tokenizer_json_without_wordpieces_is_named(write, content):
    directory = write(tokenizer=content)
    with pytest.raises(UserError, match=r"is damaged: (it|model)") as raised:
        read_tokenizer_settings(directory)
    assert str(directory / "tokenizer.json") in str(raised.value)


def test_a_tokenizer_json_that_leaves_out_an_id_is_refused(write):
    """In a vocab.txt, its tokens would have other ids."""
    tokenizer = tokenizer_json([*SPECIAL, "mill", "stone"])
    del tokenizer["model"]["vocab"]["mill"]
    directory = write(tokenizer=tokenizer)
    with pytest.raises(UserError, match=r"has no tokens for some ids .* copy vocab\.txt") as raised:
        read_tokenizer_settings(directory)
    assert str(directory / "tokenizer.json") in str(raised.value)
    tokens = [*SPECIAL, "mill", "mill", "stone"]
    assert read_tokenizer_settings(write(tokens)).tokens == tokens


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_vocab_txt_is_copied_byte_by_byte(write, output_dir, end):
    directory = write()
    content = ("\r\n".join([*LOWER_CASE, "last"]) + end).encode()
    (directory / "vocab.txt").write_bytes(content)
    write_vocabulary(output_dir, read_tokenizer_settings(directory))
    assert (output_dir / "vocab.txt").read_bytes() == content


def test_vocab_txt_is_made_from_tokenizer_json(write, output_dir):
    write_vocabulary(output_dir, read_tokenizer_settings(write(tokenizer=tokenizer_json(CASED))))
    assert (output_dir / "vocab.txt").read_text("utf-8") == "\n".join(CASED) + "\n"
    assert read_tokens(output_dir / "vocab.txt") == CASED


@pytest.mark.parametrize("do_lower_case", [True, False])
@pytest.mark.parametrize("strip_accents", [None, True, False])
def test_written_settings_are_read_back(write, output_dir, do_lower_case, strip_accents):
    settings = TokenizerSettings(write(CASED) / "vocab.txt", CASED, do_lower_case, strip_accents)
    write_tokenizer(output_dir, settings, max_length=77)
    config = json.loads((output_dir / "tokenizer_config.json").read_text())
    assert config == {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "token_type_ids", "attention_mask"],
        "do_lower_case": do_lower_case,
        "strip_accents": strip_accents,
        "tokenize_chinese_chars": True,
        "model_max_length": 77,
        "unk_token": "[UNK]",
        "sep_token": "[SEP]",
        "pad_token": "[PAD]",
        "cls_token": "[CLS]",
        "mask_token": "[MASK]",
    }
    read = read_tokenizer_settings(output_dir)
    assert read == dataclasses.replace(settings, vocabulary=output_dir / "vocab.txt")
    (output_dir / "vocab.txt").unlink()
    (output_dir / "tokenizer_config.json").unlink()
    read = read_tokenizer_settings(output_dir)
    assert read == dataclasses.replace(settings, vocabulary=output_dir / "tokenizer.json")


@pytest.mark.parametrize(("length", "pieces"), [(200, ["a"] + 199 * ["##a"]), (201, ["[UNK]"])])
def test_the_longest_word_is_as_long_as_in_the_original(write, output_dir, length, pieces):
    write_tokenizer(output_dir, read_tokenizer_settings(write([*SPECIAL, "a", "##a"])), 77)
    tokenizer = Tokenizer.from_file(str(output_dir / "tokenizer.json"))
    assert tokenizer.encode(length * "a", add_special_tokens=False).tokens == pieces


@pytest.mark.parametrize("token", SPECIAL)
def test_a_missing_special_token_is_named(write, output_dir, token):
    directory = write([other for other in CASED if other != token])
    with pytest.raises(UserError) as raised:
        write_tokenizer(output_dir, read_tokenizer_settings(directory), 77)
    assert f"{directory / 'vocab.txt'} has no {token}," in str(raised.value)
