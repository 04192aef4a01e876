#!/bin/sh
# wandb 0.31.0: a process that has called `wandb.init(mode="offline")` looks up the name of its server,
# and posts to it if there is an answer. Because before `init` reads its arguments, it makes a recorder
# of its own usage from the settings of the process, which do not say "offline". With WANDB_MODE=offline
# in the environment, nothing is looked up. Both ways write the same offline run.
#
# Seen: "argument: api.forge.coreweave.com", "variable: nothing".
set -eu
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet wandb==0.31.0
cat > "$folder/main.py" <<'PYTHON'
import atexit, sys
names = set()

def audit(event, arguments):
    if event == "socket.getaddrinfo" and arguments[0] not in (None, "localhost", "127.0.0.1"):
        names.add(str(arguments[0]))

sys.addaudithook(audit)
# The first to be registered is called last.
atexit.register(lambda: print(f"{sys.argv[1]}: {', '.join(sorted(names)) or 'nothing'}", flush=True))
import wandb

run = wandb.init(dir=sys.argv[2], mode="offline" if sys.argv[1] == "argument" else None)
run.log({"loss": 1.0})
run.finish()
PYTHON
export HOME="$folder" WANDB_SILENT=true
unset WANDB_API_KEY WANDB_MODE WANDB_BASE_URL WANDB_ERROR_REPORTING
"$folder/venv/bin/python" "$folder/main.py" argument "$folder" 2>/dev/null | tee "$folder/seen"
WANDB_MODE=offline "$folder/venv/bin/python" "$folder/main.py" variable "$folder" 2>/dev/null |
	tee -a "$folder/seen"
cat > "$folder/expected" <<'TEXT'
argument: api.forge.coreweave.com
variable: nothing
TEXT
cmp "$folder/seen" "$folder/expected" || { echo "the behaviour has changed"; exit 1; }
