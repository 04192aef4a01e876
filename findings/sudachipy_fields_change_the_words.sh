#!/bin/sh
# SudachiPy 0.7.0: `Dictionary.tokenizer(fields=…)` says which fields of the dictionary to load, to
# save time. But without the normalized forms, it also finds other words: digits are not joined.
#
# Seen: "all fields: 西暦 2025 年", "surface alone: 西暦 2 0 2 5 年".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/main.py" <<'PYTHON'
from sudachipy import Dictionary

dictionary = Dictionary(dict="core")
for name, fields in (("all fields", None), ("surface alone", {"surface"})):
    print(f"{name}: {dictionary.tokenizer('A', fields=fields).tokenize('西暦2025年')}")
PYTHON
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet sudachipy==0.7.0 sudachidict-core==20261015
"$folder/venv/bin/python" "$folder/main.py" | tee "$folder/seen"
printf 'all fields: 西暦 2025 年\nsurface alone: 西暦 2 0 2 5 年\n' > "$folder/expected"
cmp "$folder/seen" "$folder/expected" || { echo "the behaviour has changed"; exit 1; }
