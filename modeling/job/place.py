"""A process's place in its job."""

from dataclasses import dataclass

from pipeline.errors import UserError


@dataclass(frozen=True)
class JobPlace:
    """A process's place in its job.

    Attributes:
      coordinator_address: the HOST:PORT on which process 0 listens.
      num_processes: the number of processes in the job.
      process_id: this process's number, from 0.
      found_in: the source of this information, as readable text.

    Raises:
      UserError: an attribute is out of range, or the address is invalid.
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
                f"--process_id={self.process_id} must be at least 0 and less than "
                f"--num_processes={self.num_processes}"
            )
        host, _, port = self.coordinator_address.rpartition(":")
        if self.num_processes > 1 and not (host and port.isdecimal() and 0 < int(port) < 1 << 16):
            raise UserError(
                f"--coordinator_address={self.coordinator_address} must be HOST:PORT, an address "
                "of process 0's host"
            )

    @property
    def host_and_port(self) -> tuple[str, int]:
        """The host and the port on which process 0 listens."""
        host, _, port = self.coordinator_address.rpartition(":")
        return host.strip("[]"), int(port)
