"""How figures become places and colours: the ends of a scale, its marks, and where a figure stands.

Shared by pictures and pages, so that both show a figure alike. The easy mistake is a scale from 0
for sizes: heads differ by orders of magnitude, and all but the largest would look the same.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from langchain_rwkv_state.toolbox.maps import HeadMap

_LARGEST_RATIO = 1e6  # of a logarithmic scale: what is below is shown as its lower end
_SMALLEST = 1e-300  # what is below is 0: its logarithm leaves no room for a scale
_SIDE = 1.05  # how far a scale of one value alone reaches around it
_VIRIDIS = (
    *("440154", "482475", "414487", "355f8d", "2a788e", "21918c"),
    *("22a884", "44bf70", "7ad151", "bddf26", "fde725"),
)
_BRIGHT = 0.5


@dataclass(frozen=True)
class Scale:
    """The ends of a scale, and whether it is logarithmic."""

    low: float
    high: float
    log: bool = False

    @classmethod
    def of(cls, what: HeadMap) -> Scale:
        """Returns the scale for a map: logarithmic for sizes, from 0 for differences."""
        found = what.finite or (0.0,)
        high = max(found)
        positive = [x for x in found if x > _SMALLEST]
        if what.log and positive:
            low = max(min(positive), high / _LARGEST_RATIO)
            return cls(low, high, True) if low < high else cls(low / _SIDE, high * _SIDE, True)
        low = 0.0 if what.name == "difference" else min(found)
        return cls(low, high if high > low else low + max(1.0, abs(low)))

    def place(self, x: float) -> float:
        """Returns where a figure stands between the ends, 0 to 1."""
        low, high = self.low, self.high
        if self.log:
            x, low, high = (math.log10(max(each, self.low)) for each in (x, low, high))
        return min(max((x - low) / (high - low), 0.0), 1.0)

    def marks(self) -> list[float]:
        """Returns where to put marks: even to the eye; powers of ten where several fit."""
        if not self.log:
            return [self.low + (self.high - self.low) * part / 4 for part in range(5)]
        first, last = math.log10(self.low), math.log10(self.high)
        if last - first > 2:
            step = math.ceil((last - first) / 6)
            return [10.0**power for power in range(math.ceil(first), math.floor(last) + 1, step)]
        return [10 ** (first + (last - first) * part / 4) for part in range(5)]


def colour(place: float) -> tuple[str, bool]:
    """Returns the colour of a place from 0 to 1, as ``#rrggbb``, and whether it is a bright one.

    The colours are those of matplotlib's map viridis, whose steps look even, in grey too.
    """
    steps = min(max(place, 0.0), 1.0) * (len(_VIRIDIS) - 1)
    at = min(int(steps), len(_VIRIDIS) - 2)
    mixed = [
        round(one + (other - one) * (steps - at))
        for one, other in zip(*map(bytes.fromhex, _VIRIDIS[at : at + 2]), strict=True)
    ]
    red, green, blue = mixed
    bright = (0.3 * red + 0.59 * green + 0.11 * blue) / 255 > _BRIGHT
    return f"#{red:02x}{green:02x}{blue:02x}", bright


def ticks(count: int) -> list[int]:
    """Returns which of so many rows or columns get a number: at most 17."""
    step = next(step for step in (1 << power for power in range(64)) if count / step <= 17)
    return list(range(0, count, step))
