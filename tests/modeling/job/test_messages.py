import json

import pytest

from modeling.job.messages import FromCoordinator, FromProcess, Nonce, Proof, parse, printable

pytestmark = pytest.mark.no_backend

HELLO = {"process_id": 1, "num_processes": 2, "host": "node1", "port": 80}


def parsed(message, kind=FromProcess):
    return parse(json.dumps(message).encode(), kind)


@pytest.mark.parametrize(
    "message",
    [
        {},
        {"hello": HELLO},
        {"gather": None},
        {"gather": {"--model": "tiny", "sums": [0.1, float("inf")], "path": "\udcff"}},
        {"stop": "SIGUSR1"},
        {"begun": 7},
        {"doubt": True},
        {"failed": "the data are damaged"},
        {"leave": True},
    ],
)
def test_what_processes_say_is_read_as_it_was_sent(message):
    assert parsed(message) == message


@pytest.mark.parametrize(
    "message",
    [
        [],
        None,
        7,
        "hello",
        {"hello": {}},
        {"hello": HELLO | {"more": 1}},
        *({"hello": HELLO | {"process_id": bad}} for bad in (True, 1.0, "1", -1, None, 1 << 60)),
        *({"hello": HELLO | {"port": bad}} for bad in (0, 65536, True)),
        *({"hello": HELLO | {"host": bad}} for bad in (None, 1, ["node1"])),
        {"stop": "SIGKILL"},
        {"begun": -1},
        {"begun": False},
        {"leave": False},
        {"failed": 1},
        {"unknown": 1},
        # Only the coordinator may say this.
        {"end": "all is over"},
    ],
)
def test_anything_else_is_refused(message):
    with pytest.raises(ValueError, match=r".") as raised:
        parsed(message)
    assert len(str(raised.value).splitlines()) == 1


@pytest.mark.parametrize("line", [b"", b"GET / HTTP/1.1\r", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_lines_that_are_no_json_are_refused(line):
    with pytest.raises(ValueError, match=r"."):
        parse(line, FromProcess)


@pytest.mark.parametrize("kind", [Nonce, Proof])
@pytest.mark.parametrize("bad", ["", "0" * 63, "0" * 65, "g" * 64, "0" * 63 + "\n", "é" * 64, 0])
def test_nonces_and_proofs_are_hexadecimal(kind, bad):
    name = kind.__name__.lower()
    with pytest.raises(ValueError, match=name):
        parsed({name: bad}, kind)
    assert parsed({name: "0" * 64}, kind)


def test_text_is_printable_and_short():
    host = "a\nb\x1b[2J\u2028é" + "x" * 5000
    message = parsed({"hello": HELLO | {"host": host}})
    assert message["hello"]["host"].startswith("a\\nb\\x1b[2J\\u2028éx")
    assert len(message["hello"]["host"]) < 2100
    assert parsed({"end": "a\r\nb"}, FromCoordinator) == {"end": "a\\r\\nb"}
    assert printable("\udc80") == "\\udc80"
