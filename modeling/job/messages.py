"""The messages between a job's processes and its coordinator, and what each of them may hold.

A message has one key, which says what it is; an empty message is a heartbeat. Whatever arrives is
checked against these types before anything else reads it.
"""

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, ConfigDict, Field, TypeAdapter, ValidationError
from typing_extensions import TypedDict  # pydantic needs it before Python 3.12

from pipeline.errors import in_one_line

_STRICT = ConfigDict(strict=True, extra="forbid")
_MOST_CHARACTERS = 2000


def printable(text: str) -> str:
    """Escapes what a terminal would obey, such as line ends, and cuts off what is too long."""
    return in_one_line(text[:_MOST_CHARACTERS])


Text = Annotated[str, AfterValidator(printable)]
Hexadecimal = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, lt=1 << 53)]
Port = Annotated[int, Field(gt=0, lt=1 << 16)]
SignalName = Literal["SIGTERM", "SIGUSR1", "SIGINT"]


class Nonce(TypedDict):
    """What each side sends first: a number that it has never used before."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]

    nonce: Hexadecimal


class Proof(TypedDict):
    """What only a side that knows the job's token can make of both nonces."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]

    proof: Hexadecimal


class Hello(TypedDict):
    """What a process says of itself: its place, its host's name, and a free port there."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]

    process_id: Count
    num_processes: Count
    host: Text
    port: Port


class FromProcess(TypedDict, total=False):
    """A message to the coordinator.

    `gather` is a value for all, `stop` a signal that was received, `begun` the last step that was
    begun, `failed` the reason why the process ends. `doubt` says that the backend has failed,
    perhaps because another process was lost. `leave` says that the process is done.
    """

    __pydantic_config__ = _STRICT  # type: ignore[misc]

    hello: Hello
    gather: Any
    stop: SignalName
    begun: Count
    doubt: Literal[True]
    failed: Text
    leave: Literal[True]


class Welcome(TypedDict):
    """The host names of all processes, and the addresses for the backend."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]

    hosts: list[Text]
    addresses: list[Text]


class StopAfter(TypedDict):
    """The last step, and the signal that stops the job, with the process that received it."""

    __pydantic_config__ = _STRICT  # type: ignore[misc]

    step: Count
    signal: SignalName
    process_id: Count
    host: Text


class FromCoordinator(TypedDict, total=False):
    """A message to a process.

    `gathered` are the values of all processes, `hold` asks for `begun`, `end` is the reason why the
    job ends, `bye` says that all are done.
    """

    __pydantic_config__ = _STRICT  # type: ignore[misc]

    welcome: Welcome
    gathered: list[Any]
    hold: Literal[True]
    stop_after: StopAfter
    end: Text
    bye: Literal[True]


Message = TypeVar("Message", Nonce, Proof, FromProcess, FromCoordinator)
_ADAPTERS: dict[type, TypeAdapter[Any]] = {
    kind: TypeAdapter(kind) for kind in (Nonce, Proof, FromProcess, FromCoordinator)
}


def parse(line: bytes, kind: type[Message]) -> Message:
    """Parses a line of JSON.

    Raises:
      ValueError: the line is no JSON, or no message of this kind.
    """
    try:
        return _ADAPTERS[kind].validate_python(json.loads(line))
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    except ValidationError as error:
        first = error.errors()[0]
        raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
