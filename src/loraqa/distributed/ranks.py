"""The processes that train together, as one of them sees them.

Each process has a rank, from 0 on. All of them plan the same steps, and compute a part of each. The
first, of rank 0, writes everything and talks to the user. Importing this loads no PyTorch.
"""

from collections.abc import Callable
from signal import Signals
from typing import TYPE_CHECKING, Any

from loraqa.errors import LoraqaError

if TYPE_CHECKING:
    from torch import Tensor

    from loraqa.lora.flat import FlatAdapter
    from loraqa.prompt.plan import Size, Step


class PeerError(LoraqaError):
    """Another process has ended, or did not answer in time."""


class Ranks:
    """A process alone: it is the first, does everything itself, and exchanges nothing.

    `Processes` overrides every method; there all processes must call the same ones in the same
    order. A method that waits for the others is told for `what`, for its error message.

    Attributes:
        rank: the number of this process.
        size: the number of processes.
        on_machine: the number of processes on this machine.
        launcher: what stands before `loraqa train` in the command that starts all of them.
    """

    rank = 0
    size = 1
    on_machine = 1
    launcher = ""

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and messages."""
        return self.rank == 0

    def device(self, name: str) -> str:
        """Return the device that this process computes on, where the settings name `name`."""
        return name

    def part(self, step: "Step", tokens_per_batch: int, size: "Size") -> "Step":  # noqa: ARG002
        """Return the micro-batches of a step that this process computes; there may be none."""
        return step

    def add_up(
        self,
        adapter: "FlatAdapter",  # noqa: ARG002
        loss: "Tensor",
        asked: bool,  # noqa: ARG002
    ) -> tuple["Tensor", ...]:
        """Replace the adapter's gradient by the sum of those of all processes.

        Args:
            adapter: its gradient is that of this process's part of a step.
            loss: () the loss of this part; both are divided by the targets of the whole step.
            asked: whether this process is asked to stop.

        Returns:
            () the loss of the step; of several processes also a number (), which is above 0 if any
            is asked to stop.
        """
        return (loss,)

    def agree(self, received: Signals | None) -> Signals | None:
        """Return the signal that some process has received, the same in all."""
        return received

    def of_first(self, work: Callable[[], Any], what: str) -> Any:  # noqa: ARG002
        """Let the first do something, and return its result, plain JSON values, in all.

        If the first fails, it raises its error, and the others end without a message.
        """
        return work()

    def gather(self, value: Any, what: str) -> list[Any]:  # noqa: ARG002
        """Return the values of all processes, plain JSON values, by rank."""
        return [value]

    def meet(self, what: str) -> None:
        """Wait until all processes are here, up to 24 hours."""

    def copy_(self, *tensors: "Tensor", what: str) -> None:
        """Replace tensors by those of the first."""


ALONE = Ranks()
