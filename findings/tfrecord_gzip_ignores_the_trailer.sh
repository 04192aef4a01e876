#!/bin/sh
# TensorFlow 2.21.0: tf.data.TFRecordDataset(compression_type="GZIP") does not check the end of a gzip
# file. If its last bytes are missing, which hold the checksum and the length, all records are read
# without an error, while Python's gzip module says that the file ends too early. So a gzip file that
# was cut off just there is no error in training.
#
# Seen: "whole: 3 records; without its last 6 bytes: 3 records", "Python's gzip: EOFError".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet tensorflow==2.21.0
cat > "$folder/main.py" <<'PYTHON'
import gzip, os, sys
from pathlib import Path

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
import tensorflow as tf

folder = Path(sys.argv[1])
whole, cut = folder / "whole.gz", folder / "cut.gz"
with tf.io.TFRecordWriter(str(whole), "GZIP") as writer:
    for number in range(3):
        writer.write(b"record %d" % number)
cut.write_bytes(whole.read_bytes()[:-6])
counts = [
    sum(1 for _ in tf.data.TFRecordDataset(str(path), compression_type="GZIP"))
    for path in (whole, cut)
]
print(f"whole: {counts[0]} records; without its last 6 bytes: {counts[1]} records")
try:
    gzip.decompress(cut.read_bytes())
    error = "no error"
except EOFError:
    error = "EOFError"
print(f"Python's gzip: {error}")
if (counts, error) != ([3, 3], "EOFError"):
    print("the behaviour has changed")
    sys.exit(1)
PYTHON
"$folder/venv/bin/python" "$folder/main.py" "$folder" 2>/dev/null
