"""A process's place in its job."""

import ipaddress
from dataclasses import dataclass, field

from modeling.job.messages import printable
from pipeline.errors import UserError


@dataclass(frozen=True)
class JobPlace:
    """A process's place in its job.

    Attributes:
      coordinator_address: the HOST:PORT on which process 0 listens.
      num_processes: the number of processes in the job.
      process_id: this process's number, from 0.
      found_in: the source of this information, as readable text.
      token: the secret by which the job's processes know each other. Only a job of one host, whose
        address is a loopback address, needs none.

    Raises:
      UserError: an attribute is out of range, the address is invalid, or there is no token.
    """

    coordinator_address: str = ""
    num_processes: int = 1
    process_id: int = 0
    found_in: str = "a single process"
    token: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        if self.num_processes < 1:
            raise UserError(f"--num_processes={self.num_processes} must be at least 1")
        if not 0 <= self.process_id < self.num_processes:
            raise UserError(
                f"--process_id={self.process_id} must be at least 0 and less than "
                f"--num_processes={self.num_processes}"
            )
        host, _, port = self.coordinator_address.rpartition(":")
        is_port = port.isascii() and port.isdecimal() and len(port) < 6 and 0 < int(port) < 1 << 16
        if self.num_processes > 1 and not (host and host.isprintable() and is_port):
            raise UserError(
                f"--coordinator_address={printable(self.coordinator_address)} must be HOST:PORT, "
                "an address of process 0's host"
            )
        if self.num_processes > 1 and not (self.token or is_loopback(self.host_and_port[0])):
            raise UserError(
                f"the processes that meet at {self.coordinator_address} need a secret, or anyone "
                "could join them: give each --job_token_file=FILE with the same 32 or more random "
                "characters, or set CLOZEMILL_JOB_TOKEN to them"
            )

    @property
    def host_and_port(self) -> tuple[str, int]:
        """The host and the port on which process 0 listens."""
        host, _, port = self.coordinator_address.rpartition(":")
        return host.strip("[]"), int(port)


def is_ip(host: str) -> bool:
    """Whether a host is given as an IP address, rather than by its name."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def is_loopback(host: str) -> bool:
    """Whether only processes of the same host reach this address."""
    return ipaddress.ip_address(host).is_loopback if is_ip(host) else host == "localhost"
