"""Every class of `transformers` opens an export, with the same outputs and the same token ids."""

import json

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

from modeling.bert_for_pretraining import BertForPreTraining
from modeling.checkpoints.tokenizer_settings import (
    TokenizerSettings,
    read_tokenizer_settings,
    read_tokens,
    write_tokenizer,
)
from modeling.config import GeluForm
from pipeline.manifest import Manifest
from pipeline.tokenization import FullTokenizer

# Exports do not depend on the backend, so one is enough.
if keras.config.backend() != "tensorflow":
    pytest.skip("needs the TensorFlow backend", allow_module_level=True)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

S = 20

ENCODER = ("bert/",)
WITHOUT_NEXT_SENTENCE = ("bert/", "cls/predictions/")

POOLER = {"bert.pooler.dense.weight", "bert.pooler.dense.bias"}
NEXT_SENTENCE = {"cls.seq_relationship.weight", "cls.seq_relationship.bias"}
MASKED_LM = {
    "cls.predictions.bias",
    "cls.predictions.transform.dense.weight",
    "cls.predictions.transform.dense.bias",
    "cls.predictions.transform.LayerNorm.weight",
    "cls.predictions.transform.LayerNorm.bias",
}
CLASSIFIER = {"classifier.weight", "classifier.bias"}
ANSWERS = {"qa_outputs.weight", "qa_outputs.bias"}

# For each class, the tensors that a complete model's export lacks, and those it does not need.
DIFFERENCES = {
    "AutoModel": (set(), MASKED_LM | NEXT_SENTENCE),
    "BertForPreTraining": (set(), set()),
    "BertForMaskedLM": (set(), POOLER | NEXT_SENTENCE),
    "BertForNextSentencePrediction": (set(), MASKED_LM),
    "BertForSequenceClassification": (CLASSIFIER, MASKED_LM | NEXT_SENTENCE),
    "BertForTokenClassification": (CLASSIFIER, POOLER | MASKED_LM | NEXT_SENTENCE),
    "BertForQuestionAnswering": (ANSWERS, POOLER | MASKED_LM | NEXT_SENTENCE),
    "BertForMultipleChoice": (CLASSIFIER, MASKED_LM | NEXT_SENTENCE),
}

VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the The mill turn ##s Turn ##ing Müller mu ##ller a Stone "
    "stone cafe caf ##e café river 水 車 が は か ##ら ガ カ 한 국 , . ! ? ' - ( ) s t don $ 1 "
    "##2 ##3 ##ing run ##n Ü ##ber uber"
).split()
SENTENCES = [
    "The mill turns.",
    "Turning the stone, the Müller runs!",
    "A café (cafe) don't cost $123?",
    "水車が turns, から ガ カ 한 국",
    "Über-mills unknownword\tthe\u00a0river\u200b  stone",
    "",
]


def load(class_name, directory):
    """The model, and the names of tensors that were missing, not needed or of another shape."""
    model, information = getattr(transformers, class_name).from_pretrained(
        directory, output_loading_info=True
    )
    names = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return model.eval(), *(set(information[name]) for name in names)


@pytest.mark.parametrize("class_name", DIFFERENCES)
def test_class_finds_its_weights(exported, class_name):
    model, missing, unexpected, mismatched = load(class_name, exported.directory)
    assert (missing, unexpected) == DIFFERENCES[class_name]
    assert not mismatched
    variables = model.base_model.state_dict()
    tensors = load_file(exported.directory / "model.safetensors")
    shared = {
        name: name.removeprefix("bert.")
        for name in tensors.keys() - unexpected
        if name.startswith("bert.")
    }
    assert shared.keys() >= {name for name in tensors if "encoder" in name or "embeddings" in name}
    for name, theirs in shared.items():
        np.testing.assert_array_equal(variables[theirs].numpy(), tensors[name], name)


@pytest.mark.slow
def test_an_export_of_8192_positions_says_so_and_has_our_outputs_at_all(export_random):
    exported = export_random(max_position_embeddings=8192)
    model, missing, _, mismatched = load("AutoModel", exported.directory)
    assert (missing, mismatched) == (set(), set())
    assert model.config.max_position_embeddings == 8192
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported.directory)
    assert tokenizer.model_max_length == 8192
    tokens = tokenizer("mill stone " * 5000, truncation=True, return_tensors="pt")
    with torch.no_grad():
        output = model(**tokens).last_hidden_state
    batch = {
        "input_ids": tokens["input_ids"],
        "input_mask": tokens["attention_mask"],
        "segment_ids": tokens["token_type_ids"],
        "masked_lm_positions": torch.tensor([[8190]]),
    }
    batch = {name: values.numpy().astype(np.int32) for name, values in batch.items()}
    ours = compute_ours(exported, batch)["sequence_output"]
    assert ours.shape == (1, 8192, exported.config.hidden_size)
    assert_close(ours, output.numpy())


@pytest.mark.parametrize(
    ("prefixes", "class_name", "not_needed"),
    [(WITHOUT_NEXT_SENTENCE, "BertForMaskedLM", POOLER), (ENCODER, "BertModel", set())],
)
def test_model_without_all_heads_names_its_class(export_random, prefixes, class_name, not_needed):
    directory = export_random(prefixes).directory
    written = json.loads((directory / "config.json").read_text())
    assert written["architectures"] == [class_name]
    _, missing, unexpected, mismatched = load(class_name, directory)
    assert (missing, unexpected, mismatched) == (set(), not_needed, set())


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    position = np.arange(S)
    length = np.array([[S], [13], [7]])
    mask = (position < length).astype(np.int32)
    return {
        "input_ids": (rng.integers(5, 24, (3, S)) * mask).astype(np.int32),
        "input_mask": mask,
        "segment_ids": (mask * (position >= 5)).astype(np.int32),
        "masked_lm_positions": np.array([[1, 7, 9, 19], [2, 3, 11, 0], [4, 0, 0, 0]], np.int32),
    }


def compute_ours(exported, batch):
    model = BertForPreTraining(exported.config)
    model.set_named_weights(exported.weights)
    return {name: np.asarray(output) for name, output in model(batch).items()}


def compute_theirs(class_name, exported, batch):
    with torch.no_grad():
        return load(class_name, exported.directory)[0](
            input_ids=torch.tensor(batch["input_ids"]).long(),
            attention_mask=torch.tensor(batch["input_mask"]).long(),
            token_type_ids=torch.tensor(batch["segment_ids"]).long(),
        )


def assert_close(ours, theirs):
    assert ours.std() > 0.3
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("hidden_act", "gelu_form"),
    [("gelu", GeluForm.TANH), ("gelu", GeluForm.ERF), ("relu", GeluForm.TANH)],
)
def test_outputs_are_the_same(export_random, batch, hidden_act, gelu_form):
    exported = export_random(hidden_act=hidden_act, gelu_form=gelu_form)
    ours = compute_ours(exported, batch)
    rows, positions = np.arange(3)[:, np.newaxis], batch["masked_lm_positions"]

    encoder = compute_theirs("AutoModel", exported, batch)
    is_token = batch["input_mask"].astype(bool)
    assert_close(ours["sequence_output"][is_token], encoder.last_hidden_state.numpy()[is_token])
    assert_close(ours["pooled_output"], encoder.pooler_output.numpy())

    pretraining = compute_theirs("BertForPreTraining", exported, batch)
    masked_lm_logits = pretraining.prediction_logits.numpy()[rows, positions]
    assert_close(ours["masked_lm_logits"], masked_lm_logits)
    assert_close(ours["next_sentence_logits"], pretraining.seq_relationship_logits.numpy())

    masked_lm = compute_theirs("BertForMaskedLM", exported, batch)
    assert_close(ours["masked_lm_logits"], masked_lm.logits.numpy()[rows, positions])
    next_sentence = compute_theirs("BertForNextSentencePrediction", exported, batch)
    assert_close(ours["next_sentence_logits"], next_sentence.logits.numpy())


def test_decoder_is_tied_to_the_word_embeddings(exported):
    loaded = transformers.BertForPreTraining.from_pretrained(exported.directory)
    decoder = loaded.cls.predictions.decoder.weight
    assert decoder.data_ptr() == loaded.bert.embeddings.word_embeddings.weight.data_ptr()


def test_fill_mask_finds_our_likeliest_token(exported):
    text = "The mill [MASK] the stone."
    vocabulary = exported.directory / "vocab.txt"
    before, after = (FullTokenizer(vocabulary).encode(part) for part in text.split("[MASK]"))
    ids = np.array([2, *before, 4, *after, 3])
    # The shape is that of the other batches, for which JAX has compiled every operation.
    ids_BS = np.tile(np.pad(ids, (0, S - len(ids))), (3, 1)).astype(np.int32)
    batch = {
        "input_ids": ids_BS,
        "input_mask": (ids_BS > 0).astype(np.int32),
        "segment_ids": np.zeros_like(ids_BS),
        "masked_lm_positions": np.full((3, 4), 1 + len(before), np.int32),
    }
    logits = compute_ours(exported, batch)["masked_lm_logits"][0, 0]
    best = np.argsort(-logits)[:5]
    found = transformers.pipeline("fill-mask", str(exported.directory))(text)
    assert [guess["token"] for guess in found] == best.tolist()
    assert found[0]["token_str"] == vocabulary.read_text().splitlines()[best[0]]
    probabilities = np.exp(logits) / np.exp(logits).sum()
    np.testing.assert_allclose([x["score"] for x in found], probabilities[best], rtol=1e-3)


def tokenizers_of(directory):
    """Functions from a text to ids without [CLS] and [SEP], one per way to open the directory."""
    fast = transformers.AutoTokenizer.from_pretrained(directory)
    slow = transformers.BertTokenizerLegacy.from_pretrained(directory)
    file = tokenizers.Tokenizer.from_file(str(directory / "tokenizer.json"))
    return {
        "fast": lambda text: fast(text, add_special_tokens=False)["input_ids"],
        "slow": lambda text: slow(text, add_special_tokens=False)["input_ids"],
        "file": lambda text: file.encode(text, add_special_tokens=False).ids,
    }


@pytest.mark.no_backend
def test_ids_equal_the_originals_wherever_hugging_faces_do(tmp_path, golden_tokenizations):
    path, do_lower_case = golden_tokenizations.vocab_file, golden_tokenizations.do_lower_case
    settings = TokenizerSettings(path, read_tokens(path), do_lower_case, None)
    write_tokenizer(tmp_path, settings, 512)
    exported = tokenizers_of(tmp_path)
    fast = transformers.BertTokenizer(vocab=str(path), do_lower_case=do_lower_case)
    slow = transformers.BertTokenizerLegacy(str(path), do_lower_case=do_lower_case)

    lines = golden_tokenizations.lines
    # Many of the 922 texts were made to find differences. On these, Hugging Face's fast tokenizer
    # agrees with the original on 867 to 886, and its slow one on 833 to 851. On the clone's 250
    # texts, they agree on 230 to 237 and on 218 to 227. They differ in private-use and unassigned
    # characters, in the longest word's length and in "[MASK]" within a text.
    least_fast, least_slow = (0.93, 0.9) if len(lines) == 922 else (0.92, 0.87)
    agreed = {"fast": 0, "slow": 0}
    for text, _, ids in lines:
        if fast(text, add_special_tokens=False)["input_ids"] == ids:
            agreed["fast"] += 1
            assert exported["fast"](text) == ids, text
            assert exported["file"](text) == ids, text
        if slow(text, add_special_tokens=False)["input_ids"] == ids:
            agreed["slow"] += 1
            assert exported["slow"](text) == ids, text
    assert agreed["fast"] >= least_fast * len(lines)
    assert agreed["slow"] >= least_slow * len(lines)


@pytest.mark.no_backend
@pytest.mark.parametrize("letter", ["a", "ก"])
@pytest.mark.parametrize("length", [100, 101, 200, 201])
def test_long_words_have_the_ids_of_training(tmp_path, letter, length):
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", letter, f"##{letter}"]
    settings = TokenizerSettings(tmp_path / "tokenizer.json", vocabulary, True, None)
    write_tokenizer(tmp_path, settings, 512)
    ids = transformers.AutoTokenizer.from_pretrained(tmp_path)(letter * length)
    assert set(ids) == {"input_ids", "token_type_ids", "attention_mask"}
    expected = [2, 5, *[6] * (length - 1), 3] if length <= 200 else [2, 1, 3]
    assert ids["input_ids"] == expected


@pytest.mark.parametrize(
    ("do_lower_case", "strip_accents"),
    [(True, None), (False, None), (True, False), (False, True), (True, True)],
)
def test_text_settings_of_the_manifest_reach_the_tokenizers(tmp_path, do_lower_case, strip_accents):
    (tmp_path / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", "utf-8")
    manifest = Manifest(
        max_seq_length=S,
        max_predictions_per_seq=4,
        do_lower_case=do_lower_case,
        vocab_size=len(VOCABULARY),
        vocab_sha256="",
        options={},
        statistics={},
        shards=[],
        strip_accents=strip_accents,
    )
    directory = tmp_path / "exported"
    directory.mkdir()
    write_tokenizer(directory, read_tokenizer_settings(tmp_path, manifest), 32)
    ours = FullTokenizer(tmp_path / "vocab.txt", do_lower_case, strip_accents)
    for name, encode in tokenizers_of(directory).items():
        for sentence in SENTENCES:
            assert encode(sentence) == ours.encode(sentence).tolist(), (name, sentence)


def test_tokenizer_knows_pairs_and_the_longest_input(exported):
    tokenizer = transformers.AutoTokenizer.from_pretrained(exported.directory)
    assert tokenizer.model_max_length == exported.config.max_position_embeddings
    assert tokenizer.mask_token_id == 4
    assert tokenizer.pad_token_id == 0
    pair = tokenizer("the mill", "a stone")
    tokens = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert tokens == ["[CLS]", "the", "mill", "[SEP]", "a", "stone", "[SEP]"]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
    file = tokenizers.Tokenizer.from_file(str(exported.directory / "tokenizer.json"))
    encoding = file.encode("the mill", "a stone")
    assert (encoding.ids, encoding.type_ids) == (pair["input_ids"], pair["token_type_ids"])
    assert file.decode(file.encode("turning two stones").ids) == "turning two stones"
