"""An export against `transformers`: the same logits, the same token ids."""

import hashlib
import os

import numpy as np
import pytest

from modeling.checkpoints import TrainingState, save_checkpoint
from modeling.config import BertConfig, GeluForm
from modeling.huggingface import export_huggingface
from modeling.optimization import AdamW
from modeling.pretraining import BertForPreTraining
from modeling.run import prepare_run
from modeling.update import Update
from pipeline.manifest import Manifest
from pipeline.tokenization import FullTokenizer

os.environ["HF_HUB_OFFLINE"] = "1"
torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

VOCABULARY = (
    "[PAD] [UNK] [CLS] [SEP] [MASK] the The mill turn ##s Turn ##ing Müller mu ##ller a Stone "
    "stone cafe caf ##e café river 水 車 が は か ##ら ガ カ 한 국 , . ! ? ' - ( ) s t don $ 1 ##2 ##3 "
    "##ing run ##n Ü ##ber uber"
).split()
SENTENCES = [
    "The mill turns.",
    "Turning the stone, the Müller runs!",
    "A café (cafe) don't cost $123?",
    "水車が turns, から ガ カ 한 국",
    "Über-mills unknownword\tthe\u00a0river\u200b  stone",
    "",
]
S, P = 20, 4


@pytest.fixture(scope="module")
def write_run(tmp_path_factory):
    """A function that writes a run with random weights and gives its directory and model."""

    def write(do_lower_case=True, strip_accents=None, **config):
        data_dir, run_dir = tmp_path_factory.mktemp("data"), tmp_path_factory.mktemp("run")
        content = "\n".join(VOCABULARY) + "\n"
        (data_dir / "vocab.txt").write_text(content, "utf-8")
        manifest = Manifest(
            max_seq_length=S,
            max_predictions_per_seq=P,
            do_lower_case=do_lower_case,
            vocab_size=len(VOCABULARY),
            vocab_sha256=hashlib.sha256(content.encode()).hexdigest(),
            options={},
            statistics={},
            shards=[],
            strip_accents=strip_accents,
        )
        manifest.write(data_dir)
        config = BertConfig(
            vocab_size=len(VOCABULARY),
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=3,
            intermediate_size=40,
            max_position_embeddings=32,
            **config,
        )
        prepare_run(run_dir, config, data_dir, manifest)
        model = BertForPreTraining(config)
        rng = np.random.default_rng(0)
        model.set_named_weights(
            {
                name: (name.endswith("gamma") + 0.3 * rng.standard_normal(variable.shape)).astype(
                    np.float32
                )
                for name, variable in model.named_weights().items()
            }
        )
        optimizer = AdamW(1e-3)
        optimizer.build(model.trainable_variables)
        save_checkpoint(run_dir, Update(model, optimizer), TrainingState(step=1), keep=1)
        return run_dir, model

    return write


@pytest.fixture(scope="module")
def batch():
    rng = np.random.default_rng(1)
    position = np.arange(S)
    length = np.array([[S], [13], [7]])
    mask = (position < length).astype(np.int32)
    return {
        "input_ids": (rng.integers(5, len(VOCABULARY), (3, S)) * mask).astype(np.int32),
        "input_mask": mask,
        "segment_ids": (mask * (position >= 5)).astype(np.int32),
        "masked_lm_positions": np.array([[1, 7, 9, 19], [2, 3, 11, 0], [4, 0, 0, 0]], np.int32),
    }


@pytest.mark.parametrize(
    ("hidden_act", "gelu_form"),
    [("gelu", GeluForm.TANH), ("gelu", GeluForm.ERF), ("relu", GeluForm.TANH)],
)
def test_exported_model_gives_the_same_logits(write_run, batch, tmp_path, hidden_act, gelu_form):
    run_dir, model = write_run(hidden_act=hidden_act, gelu_form=gelu_form)
    export_huggingface(run_dir, tmp_path)
    loaded, information = transformers.BertForPreTraining.from_pretrained(
        tmp_path, output_loading_info=True
    )
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not information[problem], problem
    loaded.eval()
    with torch.no_grad():
        theirs = loaded(
            input_ids=torch.tensor(batch["input_ids"]).long(),
            attention_mask=torch.tensor(batch["input_mask"]).long(),
            token_type_ids=torch.tensor(batch["segment_ids"]).long(),
        )
    rows = np.arange(3)[:, np.newaxis]
    masked_lm_logits = theirs.prediction_logits.numpy()[rows, batch["masked_lm_positions"]]
    ours = {name: np.asarray(output) for name, output in model(batch).items()}
    assert ours["masked_lm_logits"].std() > 0.5
    np.testing.assert_allclose(ours["masked_lm_logits"], masked_lm_logits, rtol=0, atol=1e-4)
    np.testing.assert_allclose(
        ours["next_sentence_logits"], theirs.seq_relationship_logits.numpy(), rtol=0, atol=1e-4
    )


def test_decoder_is_tied_to_the_word_embeddings(write_run, tmp_path):
    export_huggingface(write_run()[0], tmp_path)
    loaded = transformers.BertForPreTraining.from_pretrained(tmp_path)
    decoder = loaded.cls.predictions.decoder.weight
    assert decoder.data_ptr() == loaded.bert.embeddings.word_embeddings.weight.data_ptr()


@pytest.mark.parametrize(
    ("do_lower_case", "strip_accents"),
    [(True, None), (False, None), (True, False), (False, True), (True, True)],
)
def test_exported_tokenizer_gives_the_same_ids(write_run, tmp_path, do_lower_case, strip_accents):
    run_dir, _ = write_run(do_lower_case, strip_accents)
    export_huggingface(run_dir, tmp_path)
    theirs = transformers.AutoTokenizer.from_pretrained(tmp_path)
    ours = FullTokenizer(run_dir / "vocab.txt", do_lower_case, strip_accents)
    for sentence in SENTENCES:
        ids = ours.encode(sentence).tolist()
        assert theirs(sentence, add_special_tokens=False)["input_ids"] == ids, sentence
        assert theirs(sentence)["input_ids"] == [2, *ids, 3], sentence


def test_exported_tokenizer_knows_pairs_and_the_longest_input(write_run, tmp_path):
    run_dir, model = write_run()
    export_huggingface(run_dir, tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    assert tokenizer.model_max_length == model.config.max_position_embeddings
    assert tokenizer.mask_token_id == VOCABULARY.index("[MASK]")
    assert tokenizer.pad_token_id == VOCABULARY.index("[PAD]")
    pair = tokenizer("the mill", "a stone")
    tokens = tokenizer.convert_ids_to_tokens(pair["input_ids"])
    assert tokens == ["[CLS]", "the", "mill", "[SEP]", "a", "stone", "[SEP]"]
    assert pair["token_type_ids"] == [0, 0, 0, 0, 1, 1, 1]
