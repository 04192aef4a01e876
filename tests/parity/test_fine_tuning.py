"""An export is fine-tuned as its model card shows, with adapters, and in PyTorch Lightning."""

import re

import keras
import numpy as np
import pytest
from safetensors.numpy import load_file

# Exports do not depend on the backend, so one is enough.
if keras.config.backend() != "tensorflow":
    pytest.skip("needs the TensorFlow backend", allow_module_level=True)

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["A good one.", "The bad mill turns!", "One good river, two good stones.", "Some bad text."]
LABELS = [1, 0, 1, 0]
SEVERAL_LABELS = [[1, 0, 0], [0, 1, 1], [1, 1, 0], [0, 0, 1]]


@pytest.fixture(scope="module", autouse=True)
def single_thread():
    """Threads slow down such a small model."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def tokenizer(exported):
    return transformers.AutoTokenizer.from_pretrained(exported.directory)


def classifier(exported, **settings):
    """A model with a new head, which is the same in each call."""
    torch.manual_seed(0)
    return transformers.AutoModelForSequenceClassification.from_pretrained(
        exported.directory, **settings
    )


def exported_tensors(exported):
    tensors = load_file(exported.directory / "model.safetensors")
    return {name: tensor for name, tensor in tensors.items() if name.startswith("bert.")}


def code_blocks(directory):
    return re.findall(r"```python\n(.*?)```", (directory / "README.md").read_text("utf-8"), re.S)


def execute(code, directory, output_dir):
    assert "PATH" in code
    code = code.replace('"PATH"', repr(str(directory))).replace('"OUTPUT"', repr(str(output_dir)))
    namespace = {}
    exec(code, namespace)
    return namespace


def test_card_shows_how_to_predict_masked_words(exported, tmp_path, capsys):
    execute(code_blocks(exported.directory)[0], exported.directory, tmp_path)
    assert "token_str" in capsys.readouterr().out


def test_card_of_an_encoder_shows_how_to_encode(export_random, tmp_path, capsys):
    directory = export_random(["bert/"]).directory
    execute(code_blocks(directory)[0], directory, tmp_path)
    assert "tensor(" in capsys.readouterr().out


def test_card_shows_how_to_fine_tune(exported, tmp_path):
    pytest.importorskip("accelerate")
    blocks = code_blocks(exported.directory)
    assert len(blocks) == 2
    model = execute(blocks[1], exported.directory, tmp_path)["model"]
    assert model.config.num_labels == 2
    tuned = {name: tensor.cpu().numpy() for name, tensor in model.state_dict().items()}
    before = exported_tensors(exported)
    changes = [np.abs(tuned[name] - tensor).max() for name, tensor in before.items()]
    assert 0 < max(changes) < 1e-3


@pytest.mark.parametrize(
    ("class_name", "settings", "adapter"),
    [
        ("LoraConfig", {"r": 2}, "lora_"),
        ("PrefixTuningConfig", {"num_virtual_tokens": 3}, "prompt_encoder."),
        ("PromptTuningConfig", {"num_virtual_tokens": 3}, "prompt_encoder."),
        (
            "PromptEncoderConfig",
            {"num_virtual_tokens": 3, "encoder_hidden_size": 8},
            "prompt_encoder.",
        ),
    ],
)
def test_adapter_learns_and_the_encoder_is_unchanged(
    exported, tokenizer, class_name, settings, adapter
):
    peft = pytest.importorskip("peft")
    config = getattr(peft, class_name)(task_type="SEQ_CLS", **settings)
    model = peft.get_peft_model(classifier(exported, num_labels=2), config)
    before = {name: values.detach().clone() for name, values in model.named_parameters()}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
    loss = model(**inputs, labels=torch.tensor(LABELS)).loss
    loss.backward()
    optimizer.step()

    assert torch.isfinite(loss)
    changed = {
        name for name, values in model.named_parameters() if not torch.equal(values, before[name])
    }
    assert any(adapter in name for name in changed)
    assert all(adapter in name or "classifier.modules_to_save" in name for name in changed)
    encoder = {
        f"bert.{name.replace('.base_layer', '')}": values
        for name, values in model.get_base_model().bert.state_dict().items()
        if "lora_" not in name
    }
    expected = exported_tensors(exported)
    assert encoder.keys() == expected.keys()
    for name, values in encoder.items():
        np.testing.assert_array_equal(values.numpy(), expected[name], name)


@pytest.mark.parametrize(
    ("settings", "labels"),
    [
        ({"num_labels": 2}, torch.tensor(LABELS)),
        (
            {"num_labels": 3, "problem_type": "multi_label_classification"},
            torch.tensor(SEVERAL_LABELS).float(),
        ),
    ],
    ids=["single-label", "multi-label"],
)
def test_lightning_module_learns(exported, tokenizer, tmp_path, settings, labels):
    lightning = pytest.importorskip("pytorch_lightning")

    class Classifier(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.model = classifier(exported, **settings)
            self.losses = []

        def training_step(self, batch, _):
            loss = self.model(**batch).loss
            self.losses.append(loss.item())
            return loss

        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=3e-3)

    def collate(items):
        texts, item_labels = zip(*items, strict=True)
        inputs = tokenizer(list(texts), padding=True, return_tensors="pt")
        return {**inputs, "labels": torch.stack(item_labels)}

    items = list(zip(TEXTS, labels, strict=True))
    loader = torch.utils.data.DataLoader(items, batch_size=2, collate_fn=collate)
    module = Classifier()
    trainer = lightning.Trainer(
        max_epochs=15,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(module, loader)
    assert len(module.losses) == 30
    assert np.mean(module.losses[-2:]) < 0.7 * np.mean(module.losses[:2])
