"""What goes wrong with a store is one line, soon, without a credential; what passes is retried."""

import pickle
import socket
import sys
import time
import traceback
from dataclasses import replace

import pytest
from apache_beam.options.pipeline_options import PipelineOptions

from pipeline import stores
from pipeline.errors import UserError
from pipeline.generate import generate
from pipeline.storage import location
from tests.object_store import CUT

pytestmark = pytest.mark.no_backend

SECRETS = ("marked-key", "marked-secret", "marked-token")


@pytest.fixture
def bucket(server, monkeypatch):
    """A bucket of its own; the credentials are marked."""
    server.reset()
    environment = {
        **server.environment,
        **dict(zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), SECRETS, strict=False)),
        "AWS_SESSION_TOKEN": SECRETS[2],
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    return location(server.make_bucket())


@pytest.fixture
def messages(monkeypatch):
    logged = []
    monkeypatch.setattr(
        "absl.logging.warning", lambda message, *values: logged.append(message % values)
    )
    monkeypatch.setattr(stores, "_FIRST_PAUSE_SECONDS", 0.01)
    return logged


def failure_of(operation):
    """The one line of an operation's failure, which holds no secret wherever one looks."""
    started = time.monotonic()
    with pytest.raises((OSError, UserError)) as caught:
        operation()
    assert time.monotonic() < started + 10
    error = caught.value
    shown = [str(error), repr(error), *traceback.format_exception(error)]
    shown.append(repr(pickle.dumps(error)))
    for secret in SECRETS:
        assert not any(secret in text for text in shown)
    assert "Debug source" not in "".join(shown)
    assert len(str(error).splitlines()) == 1
    assert len(str(error)) < 300
    return str(error)


OPERATIONS = {
    "size": lambda path: path.size(),
    "read": lambda path: path.read_bytes(),
    "upload": lambda path: path.upload(b"1"),
    "create": lambda path: path.upload(b"1", only_if=""),
    "list": lambda path: list(path.iterdir()),
    "list below": lambda path: list(path.rglob("*")),
    "unlink": lambda path: path.unlink(missing_ok=True),
}


@pytest.mark.parametrize("operation", ["size", "read", "create", "list"])
@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ((403, "AccessDenied"), "denies access: check the rights of AWS_ACCESS_KEY_ID"),
        ((403, "InvalidAccessKeyId"), "does not know the credentials: check AWS_ACCESS_KEY_ID"),
        ((403, "SignatureDoesNotMatch"), "check AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"),
        ((400, "ExpiredToken"), "have expired: renew AWS_SESSION_TOKEN"),
        ((400, "InvalidToken"), "have expired: renew AWS_SESSION_TOKEN"),
        ((403, "RequestTimeTooSkewed"), "set its clock"),
        ((301, "PermanentRedirect"), "in another region: set AWS_REGION"),
        ((400, "AuthorizationHeaderMalformed"), "in another region: set AWS_REGION"),
        (400, "check AWS_REGION and AWS_SESSION_TOKEN"),
        ((404, "NoSuchBucket"), "there is no bucket s3://"),
    ],
)
def test_a_refusal_is_one_line_that_says_what_to_set(bucket, server, answer, expected, operation):
    server.before = lambda *_: answer
    assert expected in failure_of(lambda: OPERATIONS[operation](bucket / "a"))
    assert len(server.requests) <= 3


@pytest.mark.usefixtures("bucket")
def test_a_bucket_that_is_not_there_is_named():
    missing = location("s3://there-is-none") / "a"
    for operation in OPERATIONS.values():
        line = failure_of(lambda each=operation: each(missing))
        assert "there is no bucket s3://there-is-none: check its name, AWS_REGION and AWS_" in line
        assert "AWS_ENDPOINT_URL: 's3" in line


def test_an_address_where_no_store_answers_is_named(bucket, monkeypatch, messages):
    monkeypatch.setattr(stores, "_FIRST_SECONDS", 1.0)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        for address, expected in {
            f"http://127.0.0.1:{port}": f"127.0.0.1:{port} does not answer: check AWS_ENDPOINT_URL",
            "http://127.0.0.1:1": "nothing listens at 127.0.0.1:1: check AWS_ENDPOINT_URL",
            "http://nowhere.invalid": "there is no host nowhere.invalid: check AWS_ENDPOINT_URL",
        }.items():
            monkeypatch.setenv("AWS_ENDPOINT_URL", address)
            started = time.monotonic()
            assert expected in failure_of((bucket / "a").size)
            assert time.monotonic() < started + 2.5
    assert any("trying again" in message for message in messages)


@pytest.mark.parametrize(
    "address", ["127.0.0.1:9000", "not a url", "http://", "ftp://host", "http://host:port"]
)
def test_an_address_that_is_none_is_named(bucket, monkeypatch, address):
    monkeypatch.setenv("AWS_ENDPOINT_URL", address)
    expected = "AWS_ENDPOINT_URL is not an address: set it to one like http://HOST:PORT"
    assert failure_of((bucket / "a").size) == expected


def test_without_credentials_nobody_is_asked_for_some(bucket, server, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    server.requests.clear()
    expected = "there are no credentials: set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_"
    assert expected in failure_of((bucket / "a").size)
    assert not server.requests
    # A machine of the cloud may have some; here it refuses.
    monkeypatch.delenv("AWS_EC2_METADATA_DISABLED")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", server.environment["AWS_ENDPOINT_URL"])
    server.before = lambda *_: 403
    assert expected in failure_of((bucket / "a").size)
    assert [path for _, path in server.requests] == ["/latest/api/token"]
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key")
    assert expected in failure_of((bucket / "a").size)


@pytest.mark.parametrize(
    ("answer", "operation"),
    [
        *((answer, "size") for answer in ((503, "SlowDown"), 429, 500, 502, 504)),
        *((answer, operation) for answer in (503, CUT) for operation in OPERATIONS),
    ],
)
def test_a_busy_store_is_asked_again_with_a_message(bucket, server, messages, answer, operation):
    path = bucket / "a" / "b"
    if operation != "create":
        path.upload(b"1")
    server.requests.clear()
    server.before = lambda number, *_: answer if number < 3 else None
    OPERATIONS[operation](path)
    assert len(messages) == 3
    assert all(str(bucket) in message and "; trying again" in message for message in messages)
    assert not any(secret in message for secret in SECRETS for message in messages)


def test_a_store_that_stays_busy_is_given_up(bucket, server, messages, monkeypatch):
    monkeypatch.setattr(stores, "_SECONDS", 0.5)
    (bucket / "a").upload(b"1")
    for answer, expected in {503: "busy (503)", CUT: "has cut the connection"}.items():
        server.before = lambda *_, each=answer: each
        assert expected in failure_of((bucket / "a").size)
    assert 5 < len(messages) < 40


def test_profiles_need_boto3_and_say_what_is_wrong(bucket, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    (tmp_path / "credentials").write_text(
        f"[work]\naws_access_key_id = {SECRETS[0]}\naws_secret_access_key = {SECRETS[1]}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "play")
    assert "AWS_PROFILE=play gives no credentials" in failure_of((bucket / "a").size)
    monkeypatch.setenv("AWS_PROFILE", "work")
    (bucket / "a").upload(b"1")
    assert (bucket / "a").size() == 1
    monkeypatch.setitem(sys.modules, "obstore.auth.boto3", None)
    monkeypatch.setenv("AWS_REGION", "elsewhere")  # makes it another store
    assert "pip install 'clozemill[aws]'" in failure_of((bucket / "a").size)


def test_a_data_set_and_what_is_said_of_it_hold_no_credential(bucket, corpus, caplog):
    caplog.set_level("DEBUG")
    options = replace(corpus, output_dir=bucket / "data")
    generate(options, PipelineOptions([]))
    generate(options, PipelineOptions([]))
    contents = [path.read_bytes() for path in bucket.rglob("*")]
    assert len(contents) > 10
    shown = [*contents, caplog.text.encode(), pickle.dumps(options), repr(options).encode()]
    assert not [text for text in shown for secret in SECRETS if secret.encode() in text]
