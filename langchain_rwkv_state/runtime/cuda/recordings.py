"""Records steps of one token in each of B slots as CUDA graphs, and replays them.

Starting a step's kernels one by one takes longer than they run; a CUDA graph starts them all at
once. A graph knows addresses alone: a step reads and writes the same tensors each time it is
called, and what it lacks to the size that was recorded is filled with tokens for the spare cell.
A size that cannot be recorded leaves the others alone. Recording itself has not yet run on a card.
"""

from __future__ import annotations

import logging
import math
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

logger = logging.getLogger(__name__)

Step: TypeAlias = Callable[[], None]
"""Reads and writes the same tensors at every call, without waiting for the device."""

WARM_UPS = 2
"""Runs before a recording, in which libraries take their workspace and kernels are compiled."""

TOLERANCE = 0.01
"""How far a recording may be off the eager step, as a share of the largest number."""

RETRY_AFTER = 1_000
"""Uses of a size that could not be recorded, before it is tried again; doubled at each failure."""

capturing = threading.Lock()
"""Held while this process records, on any card: CUDA has one capture at a time, and whoever empties
PyTorch's cache meanwhile breaks it."""


class Capture(Protocol):
    """Records steps for one user, who replays one after another and takes each one's results."""

    def __call__(self, step: Step) -> Step:
        """Does a step a few times, and returns what does the same again.

        Raises:
            RuntimeError: It cannot be recorded; everything is as it was before.
        """
        ...


def captures(device: torch.device) -> Capture | None:
    """Returns how steps are recorded on a device, ``None`` where they are not."""
    return CudaGraphs(device) if device.type == "cuda" else None


def sizes(most: int) -> list[int]:
    """Returns the numbers of slots that steps are recorded for; the last is no less than `most`.

    Example:
        >>> sizes(20)
        [1, 2, 4, 8, 16, 24]
    """
    found = [padded(1)]
    while found[-1] < most:
        found.append(padded(found[-1] + 1))
    return found


def padded(count: int) -> int:
    """Returns the least size that is no less: 1, 2, 4, 8, then each 8th to 64, then each 32nd.

    Example:
        >>> [padded(count) for count in (1, 3, 9, 57, 65, 97)]
        [1, 4, 16, 64, 96, 128]
    """
    if count <= 8:
        return 1 << (count - 1).bit_length()
    each = 8 if count <= 64 else 32
    return -(-count // each) * each


class Recordings:
    """The recorded steps of one model. One thread uses it at a time; they live as long as it does.

    Args:
        capture: How steps are recorded.
        step_of: Returns the step of a size. It is called before each try to record that size, and
            then sets the step's inputs to a trial: tokens that are read from any cells, written to
            the spare one, and chosen for nobody. So the trial may be run as often as is needed,
            and gives the same results each time.
        most: Most slots of a step.
        outputs: Returns the tensors that a size's step wrote last, by which a recording is compared
            with the eager step before it is used; ``None`` to trust it.
        retry_after: Uses of a failed size before it is tried again.

    Attributes:
        sizes: What steps are recorded for.
    """

    def __init__(
        self,
        capture: Capture,
        step_of: Callable[[int], Step],
        *,
        most: int,
        outputs: Callable[[int], Sequence[Tensor]] | None = None,
        retry_after: int = RETRY_AFTER,
    ) -> None:
        self.sizes = sizes(most)
        self._capture, self._step_of = capture, step_of
        self._outputs, self._retry_after = outputs, retry_after
        self._recorded: dict[int, Step] = {}
        self._failures: dict[int, _Failure] = {}

    @property
    def recorded(self) -> list[int]:
        """The sizes that are recorded, ascending."""
        return sorted(self._recorded)

    @property
    def failed(self) -> dict[int, str]:
        """The sizes that could not be recorded, each with the reason."""
        return {size: failure.why for size, failure in sorted(self._failures.items())}

    def record_all(self, on_progress: Callable[[int, int], None] | None = None) -> None:
        """Records what is not recorded yet, the largest first: the others fit into its memory.

        Args:
            on_progress: Called with (sizes done, sizes in all).
        """
        known = set(self._failures)
        for done, size in enumerate(reversed(self.sizes), 1):
            if size not in self._recorded:
                self._record(size)
            if on_progress is not None:
                on_progress(done, len(self.sizes))
        self._warn(set(self._failures) - known)

    def prepare(self, count: int) -> int:
        """Returns the size whose inputs a step is to be put into; those of any size may change.

        Args:
            count: Number of slots in the step.

        Raises:
            ValueError: There are more slots than steps are recorded for, or none.
        """
        size = padded(count)
        if count < 1 or size > self.sizes[-1]:
            raise ValueError(f"A step has 1 to {self.sizes[-1]} slots, got {count}.")
        failure = self._failures.get(size)
        if size not in self._recorded and (failure is None or failure.is_due()):
            self._record(size)
            if failure is None:
                self._warn(self._failures.keys() & {size})
        return self._serving(size)

    def replay(self, count: int) -> None:
        """Runs the step of the size that `prepare` returned, recorded if it is."""
        size = self._serving(padded(count))
        step = self._recorded.get(size) or self._failures[size].step
        step()

    def _serving(self, size: int) -> int:
        """Returns the next size that is recorded, or the same, whose step then runs eagerly."""
        return min((other for other in self._recorded if other >= size), default=size)

    def _record(self, size: int) -> None:
        step = self._step_of(size)
        before = self._failures.pop(size, None)
        wait = self._retry_after if before is None else 2 * before.wait
        try:
            recording = self._capture(step) if self._outputs is None else self._checked(size, step)
        except _DiffersError as error:
            self._failures[size] = _Failure(step, str(error), math.inf)
        except RuntimeError as error:
            why = str(error).partition("\n")[0] or type(error).__name__
            self._failures[size] = _Failure(step, why, wait)
        else:
            self._recorded[size] = recording

    def _checked(self, size: int, step: Step) -> Step:
        assert self._outputs is not None  # noqa: S101  # the caller looked
        step()
        expected = [output.clone() for output in self._outputs(size)]
        recording = self._capture(step)
        outputs = self._outputs(size)
        for output in outputs:
            output.fill_(-1)
        recording()
        for number, (output, wanted) in enumerate(zip(outputs, expected, strict=True)):
            if not _same(output, wanted):
                raise _DiffersError(f"its result {number} differs from the eager step's")
        return recording

    def _warn(self, failed: Iterable[int]) -> None:
        named = sorted(failed)
        if not named:
            return
        logger.warning(
            "Steps of %s slots are not recorded as a CUDA graph, and slower: %s. %s",
            ", ".join(map(str, named)),
            self._failures[named[0]].why,
            "A larger recording serves them where there is one."
            if self._recorded
            else "No step is recorded.",
        )


@dataclass
class _Failure:
    """A size that could not be recorded.

    Attributes:
        step: What runs in its place.
        why: What went wrong.
        wait: Uses until it is tried again, infinite for never.
        uses: Uses since.
    """

    step: Step
    why: str
    wait: float
    uses: int = 0

    def is_due(self) -> bool:
        """Counts a use, and says whether it is time to try again."""
        self.uses += 1
        return self.uses > self.wait


class _DiffersError(RuntimeError):
    """A recording does not do what the eager step does."""


def _same(found: Tensor, expected: Tensor) -> bool:
    if not expected.is_floating_point():
        return torch.equal(found, expected)
    known = expected[expected.isfinite()]
    room = TOLERANCE * known.abs().max().item() if known.numel() else 0.0
    return torch.allclose(found, expected, rtol=0, atol=room)


class CudaGraphs:
    """Records CUDA graphs, which share the memory of what lies between their input and output.

    They may, since one thread replays one after another. Each user has a stream of its own, on its
    own card: `torch.cuda.graph` alone has one for all cards, and two users of one stream would
    share the workspace that libraries keep for it.

    Args:
        device: Where.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._aside: torch.cuda.Stream | None = None
        self._pool: Any = None
        self._broken: list[torch.cuda.CUDAGraph] = []

    def __call__(self, step: Step) -> Step:
        """See `Capture`."""
        with capturing, torch.cuda.device(self._device):
            here = torch.cuda.current_stream()
            if self._aside is None:
                self._aside = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch
            self._aside.wait_stream(here)
            try:
                with torch.cuda.stream(self._aside):  # left on any failure, unlike torch's own
                    for _ in range(WARM_UPS):
                        step()
                    # What these runs took is given back: the pool takes as much once more.
                    torch.cuda.synchronize()
                    torch.cuda.empty_cache()
                    graph = self._captured(step)
            finally:
                here.wait_stream(self._aside)

        def replay() -> None:
            with torch.cuda.device(self._device):
                graph.replay()

        return replay

    def _captured(self, step: Step) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        pool, self._pool = self._pool, None  # one that a capture failed in takes no other
        # Other threads may use the card meanwhile.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            step()
        except BaseException:
            with suppress(RuntimeError):  # a broken capture cannot be ended without one
                graph.capture_end()
                self._pool = pool
            if self._pool is None:
                # PyTorch before 2.9 goes on asking it whose memory is whose.
                self._broken.append(graph)
            raise
        graph.capture_end()
        self._pool = graph.pool()
        return graph
