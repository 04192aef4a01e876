#!/bin/sh
# obstore 0.12.1: one object of S3 whose key has an empty part (`data//b`), which S3 allows and other
# programs write, makes every list of the folder fail. None of the other objects can be found then.
# boto3 lists them all. Clozemill says which folder cannot be searched, and why.
#
# Seen: "boto3: data//b, data/a", "obstore without it: data/a", "obstore: Path \"data//b\" contained
# empty path segment".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet obstore==0.12.1 'moto[s3,server]==5.2.5'
cat > "$folder/main.py" <<'PYTHON'
import logging, re
import boto3, obstore
from moto.server import ThreadedMotoServer
from obstore.store import S3Store

logging.disable()
server = ThreadedMotoServer("127.0.0.1", 0)
server.start()
where = "http://%s:%d" % server.get_host_and_port()
options = dict(aws_access_key_id="a", aws_secret_access_key="b", region_name="us-east-1")
client = boto3.client("s3", endpoint_url=where, **options)
client.create_bucket(Bucket="bucket")
store = S3Store(
    "bucket", endpoint=where, access_key_id="a", secret_access_key="b", region="us-east-1",
    client_options={"allow_http": True},
)
client.put_object(Bucket="bucket", Key="data/a", Body=b"1")
print("obstore without it:", *(each["path"] for page in obstore.list(store, "data") for each in page))
client.put_object(Bucket="bucket", Key="data//b", Body=b"2")
listed = client.list_objects_v2(Bucket="bucket", Prefix="data/")["Contents"]
print("boto3:", ", ".join(sorted(each["Key"] for each in listed)))
try:
    print("obstore:", [each["path"] for page in obstore.list(store, "data") for each in page])
except Exception as error:
    print("obstore:", re.search(r'Path "data//b" contained empty path segment', str(error))[0])
server.stop()
PYTHON
"$folder/venv/bin/python" "$folder/main.py" 2>/dev/null | sed '/^Starting/d' | tee "$folder/seen"
cat > "$folder/expected" <<'TEXT'
obstore without it: data/a
boto3: data//b, data/a
obstore: Path "data//b" contained empty path segment
TEXT
cmp "$folder/seen" "$folder/expected" || { echo "the behaviour has changed"; exit 1; }
