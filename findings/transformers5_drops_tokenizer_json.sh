#!/bin/sh
# transformers 5.23.0: if tokenizer_config.json says "tokenizer_class": "BertTokenizer", AutoTokenizer
# takes only the vocabulary from tokenizer.json and builds the rest anew. So what else that file says
# is lost, such as WordPiece's "max_input_chars_per_word": words of 101 to 200 characters, which the
# original BERT splits into pieces, become [UNK]. transformers 4.57.6 reads the same directory as the
# file says. With "PreTrainedTokenizerFast", both do; but then "model_input_names" must be given, too,
# or there are no token_type_ids.
#
# Seen: "5.23.0 BertTokenizer: [UNK]", "5.23.0 PreTrainedTokenizerFast: 150 pieces",
#       "4.57.6 BertTokenizer: 150 pieces", "4.57.6 PreTrainedTokenizerFast: 150 pieces".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/main.py" <<'PYTHON'
import json, sys
from pathlib import Path

import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "##a"]
vocab = {name: number for number, name in enumerate(names)}
backend = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", max_input_chars_per_word=200))
backend.normalizer = normalizers.BertNormalizer()
backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
backend.post_processor = processors.TemplateProcessing(
    single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
)
special = {f"{name[1:-1].lower()}_token": name for name in names[:5]}
for kind in ("BertTokenizer", "PreTrainedTokenizerFast"):
    directory = Path(sys.argv[1], f"{transformers.__version__}-{kind}")
    directory.mkdir()
    backend.save(str(directory / "tokenizer.json"))
    (directory / "vocab.txt").write_text("\n".join(names) + "\n")
    inputs = ["input_ids", "token_type_ids", "attention_mask"]
    config = {"tokenizer_class": kind, "model_input_names": inputs, **special}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    ids = transformers.AutoTokenizer.from_pretrained(directory)("a" * 150)["input_ids"]
    found = "[UNK]" if ids == [2, 1, 3] else f"{len(ids) - 2} pieces"
    print(f"{transformers.__version__} {kind}: {found}", flush=True)
PYTHON
for version in 5.23.0 4.57.6; do
	python3 -m venv "$folder/$version"
	"$folder/$version/bin/pip" install --quiet "transformers==$version"
	mkdir "$folder/of-$version"
	HF_HUB_OFFLINE=1 "$folder/$version/bin/python" "$folder/main.py" "$folder/of-$version" \
		2>"$folder/errors" | tee -a "$folder/seen"
done
cat > "$folder/expected" <<'TEXT'
5.23.0 BertTokenizer: [UNK]
5.23.0 PreTrainedTokenizerFast: 150 pieces
4.57.6 BertTokenizer: 150 pieces
4.57.6 PreTrainedTokenizerFast: 150 pieces
TEXT
cmp "$folder/seen" "$folder/expected" || { echo "the behaviour has changed"; exit 1; }
