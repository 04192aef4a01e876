#!/bin/sh
# transformers 5.23.0: a BertJapaneseTokenizer gives no token_type_ids, not even for a pair of texts,
# unless "model_input_names" is given. So a model gets segment 0 for both texts, and nothing says so.
# BertTokenizer gives them, and so does BertJapaneseTokenizer in transformers 4.57.6.
#
# Seen: "5.23.0 BertJapaneseTokenizer: ['attention_mask', 'input_ids']",
#       "5.23.0 with model_input_names: ['attention_mask', 'input_ids', 'token_type_ids']",
#       "4.57.6 BertJapaneseTokenizer: ['attention_mask', 'input_ids', 'token_type_ids']",
#       "4.57.6 with model_input_names: ['attention_mask', 'input_ids', 'token_type_ids']".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/main.py" <<'PYTHON'
import sys
from pathlib import Path

import transformers

path = Path(sys.argv[1], "vocab.txt")
path.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "雨", "雪"]) + "\n", "utf-8")
names = ["input_ids", "token_type_ids", "attention_mask"]
for kind, more in (("BertJapaneseTokenizer", {}), ("with model_input_names", {"model_input_names": names})):
    tokenizer = transformers.BertJapaneseTokenizer(
        str(path), word_tokenizer_type="mecab", mecab_kwargs={"mecab_dic": "unidic_lite"}, **more
    )
    print(f"{transformers.__version__} {kind}: {sorted(tokenizer('雨', '雪'))}", flush=True)
PYTHON
for version in 5.23.0 4.57.6; do
	python3 -m venv "$folder/$version"
	"$folder/$version/bin/pip" install --quiet "transformers==$version" fugashi==1.5.2 unidic-lite==1.0.8
	HF_HUB_OFFLINE=1 "$folder/$version/bin/python" "$folder/main.py" "$folder" \
		2>"$folder/errors" | tee -a "$folder/seen"
done
cat > "$folder/expected" <<'TEXT'
5.23.0 BertJapaneseTokenizer: ['attention_mask', 'input_ids']
5.23.0 with model_input_names: ['attention_mask', 'input_ids', 'token_type_ids']
4.57.6 BertJapaneseTokenizer: ['attention_mask', 'input_ids', 'token_type_ids']
4.57.6 with model_input_names: ['attention_mask', 'input_ids', 'token_type_ids']
TEXT
cmp "$folder/seen" "$folder/expected" || { echo "the behaviour has changed"; exit 1; }
