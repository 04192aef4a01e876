"""What the step of a backend offers to the training loop: Replicas and TrainStep."""

from abc import abstractmethod
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol, Self

from modeling.job.group import ProcessGroup
from modeling.step.learner import Batch, Learner

if TYPE_CHECKING:
    from modeling.context import Context


class Replicas(Protocol):
    """The devices of all processes, in replicas, each of which computes a part of every batch.

    A replica is a device, or the devices that divide the positions of its sequences. Create this
    before anything is computed. It is a context manager, so that the processes part in order at its
    end.

    Attributes:
      group: the processes.
      num_devices: devices of all processes.
      local_count: devices of this process.
      count: replicas.
      num_readers: processes that read different instances. Those of one replica read the same.
      context: the devices of a replica, if it has several.
    """

    group: ProcessGroup
    num_devices: int
    local_count: int
    count: int
    num_readers: int
    context: "Context | None"

    @abstractmethod
    def __init__(self, group: ProcessGroup | None = None, context_parallel: int = 1):
        """Connects the devices of a group; by default, this process is the only one.

        Raises:
          UserError: replicas of `context_parallel` devices are impossible.
        """

    @property
    def reader(self) -> int:
        """The number of this process among the readers, from 0."""
        return self.reader_of(self.group.process_id)

    def reader_of(self, process_id: int) -> int:
        """The number of a process among the readers."""
        return process_id * self.num_readers // self.group.num_processes

    @abstractmethod
    def __enter__(self) -> Self: ...

    @abstractmethod
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    @abstractmethod
    def divide(self, batch: Batch) -> Any:
        """A batch's part of this process, NumPy arrays, divided among its devices."""

    @abstractmethod
    def seconds_to_add(self, num_numbers: int) -> float:
        """The seconds that it takes to add so many float32 numbers over all devices."""


class TrainStep(Protocol):
    """Updates the weights by one batch at each call; the first call of a new size compiles."""

    @abstractmethod
    def __init__(self, learner: Learner, replicas: Replicas | None = None):
        """Takes the variables of a learner to the devices; by default, those of this process."""

    @property
    @abstractmethod
    def attention_kernel(self) -> str:
        """What computes attention, once the step is compiled; for people."""

    @abstractmethod
    def __call__(self, batch: Batch) -> dict[str, Any]:
        """Makes an update; returns the batch's totals and sums, and what `Learner.apply` returns.

        Args:
          batch: NumPy arrays, this process's part of the batch.
        """

    @abstractmethod
    def is_idle(self) -> bool:
        """Whether the last step has ended, as far as the backend can say."""
