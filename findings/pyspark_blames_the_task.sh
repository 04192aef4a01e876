#!/bin/sh
# PySpark 4.3.0 with a standalone master of Spark 3.5.9 (and the other way round): the context seems to
# start. It tries the master for a minute. Then the first job fails with "Task not serializable", although
# there is nothing wrong with the task. The reason, an InvalidClassException of the first message to the
# master, is in the driver's log alone. A service that is no Spark master at all ends in the same way.
#
# Seen: "after 63 seconds: org.apache.spark.SparkException: Task not serializable".
set -eu
if ! command -v java > /dev/null; then
	echo "needs Java 17"
	exit 1
fi
folder=$(mktemp -d)
master=
trap 'test -z "$master" || kill $master; rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --target "$folder/spark3" pyspark==3.5.9
"$folder/venv/bin/pip" install --quiet pyspark==4.3.0
SPARK_HOME="$folder/spark3/pyspark" "$folder/spark3/pyspark/bin/spark-class" \
	org.apache.spark.deploy.master.Master --host 127.0.0.1 --port 7277 --webui-port 0 \
	> "$folder/master.log" 2>&1 &
master=$!
sleep 10
cat > "$folder/main.py" <<'PYTHON'
import sys
import time

from pyspark import SparkConf, SparkContext

conf = SparkConf().setMaster("spark://127.0.0.1:7277").setAppName("finding")
conf.set("spark.driver.host", "127.0.0.1").set("spark.driver.bindAddress", "127.0.0.1")
started = time.perf_counter()
try:
    SparkContext(conf=conf).parallelize([1, 2], 2).map(str).collect()
    message = "no error"
except Exception as error:
    message = str(error)
seconds = time.perf_counter() - started
found = [line.strip(": ") for line in message.splitlines() if "SparkException" in line]
print(f"after {seconds:.0f} seconds: {(found or [message])[0]}")
if seconds < 50 or "Task not serializable" not in message:
    print("the behaviour has changed")
    sys.exit(1)
PYTHON
PYSPARK_PYTHON="$folder/venv/bin/python" "$folder/venv/bin/python" "$folder/main.py" 2> "$folder/driver.log"
if ! grep -q "InvalidClassException" "$folder/driver.log"; then
	echo "the log gives another reason"
	exit 1
fi
