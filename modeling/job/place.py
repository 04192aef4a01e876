"""A process's place in its job."""

from dataclasses import dataclass

from pipeline.errors import UserError


@dataclass(frozen=True)
class JobPlace:
    """A process's place in its job.

    Attributes:
      coordinator_address: HOST:PORT at which process 0 listens.
      num_processes: of the job.
      process_id: from 0.
      found_in: where this was found, for people.

    Raises:
      UserError: an attribute is out of range, or the address is none.
    """

    coordinator_address: str = ""
    num_processes: int = 1
    process_id: int = 0
    found_in: str = "a single process"

    def __post_init__(self) -> None:
        if self.num_processes < 1:
            raise UserError(f"--num_processes={self.num_processes} must be at least 1")
        if not 0 <= self.process_id < self.num_processes:
            raise UserError(
                f"--process_id={self.process_id} must lie between 0 and --num_processes="
                f"{self.num_processes} less 1"
            )
        host, _, port = self.coordinator_address.rpartition(":")
        if self.num_processes > 1 and not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise UserError(
                f"--coordinator_address={self.coordinator_address} must be HOST:PORT, an address of "
                "process 0's host"
            )

    @property
    def host_and_port(self) -> tuple[str, int]:
        """Where process 0 listens."""
        host, _, port = self.coordinator_address.rpartition(":")
        return host.strip("[]"), int(port)
