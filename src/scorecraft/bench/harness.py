"""What a benchmark is made of, and how time and memory are taken.

A bench is a module with `CASES: tuple[Case, ...]`. A case pits up to three entries against each other: `ours`, the
`peer` (the library or the plain form a user would reach for otherwise) and the `floor` (what no implementation of
this kind can avoid: one `x @ x.T` with its backward). Every number is taken in a process started for it
(`scorecraft.bench.child`), and entries are addressed by name so that nothing but words and numbers crosses the
process boundary.

Time: all entries of a case in one fresh process, one warm-up each, then at least seven rounds in which the entries take
turns, the order reversed every other round; medians, and ratios of medians.

Memory: one fresh process per entry. First a run at toy size (so that lazily imported code and thread pools are not
charged), then the inputs at full size, then the baseline, then one run. `memory` is the peak resident set during that
run above the baseline: everything the call allocates beyond its inputs, gradients included. `process memory` is the
peak of the whole process, interpreter, torch and inputs included. On CUDA both are peaks of torch's allocator. 1 MB =
10^6 bytes.

Both ratios of a row put ours on top: `ratio_to_peer = ours / peer` and `ratio_to_floor = ours / floor`; smaller is
better, and "six times faster than the peer" is a ratio of at most 1/6.
"""

from __future__ import annotations

import ctypes
import gc
import math
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, TypedDict

if TYPE_CHECKING:
    import torch

EntryName = Literal["ours", "peer", "floor"]
What = Literal["time", "memory", "process memory"]
UNITS: Mapping[What, str] = {"time": "s", "memory": "MB", "process memory": "MB"}

ROUNDS = 7
MORE_ROUNDS = 31  # short cases get up to this many, as long as the rounds together take about LONG_ENOUGH
LONG_ENOUGH = 20.0  # seconds
SLOW_PEER = 20.0  # a peer whose warm-up takes longer than this many seconds runs SLOW_PEER_ROUNDS, and its row says so
SLOW_PEER_ROUNDS = 3

Shape = Mapping[str, int]
"""The sizes of a case, such as `{"n": 4096, "d": 256}`."""

Call = Callable[[], float]
"""One measured run. Returns the value that was computed, so that entries can be checked against each other."""


class BenchError(RuntimeError):
    """A measurement that could not be taken, or entries that do not compute the same thing."""


class Row(TypedDict):
    """One figure of one case (`null` in JSON where there is none). Both ratios have ours on top: smaller is better."""

    bench: str
    case: str
    what: str
    ours: float
    peer: float | None
    floor: float | None
    unit: str
    peer_name: str | None
    ratio_to_peer: float | None
    ratio_to_floor: float | None
    limit: str | None
    within_limit: bool | None


@dataclass(frozen=True, slots=True)
class Entry:
    """A contender: `build(shape, device)` makes the inputs and returns the call to be measured.

    `needs` names the importable packages without which the entry is left out.
    """

    title: str
    build: Callable[[Shape, torch.device], Call]
    needs: tuple[str, ...] = ()

    @property
    def missing(self) -> tuple[str, ...]:
        """The packages that this entry needs and that are not installed."""
        return tuple(name for name in self.needs if find_spec(name) is None)


@dataclass(frozen=True, slots=True)
class Bound:
    """An upper bound on `ours` (in the unit of its figure) or on one of the two ratios."""

    on: Literal["ours", "ratio_to_peer", "ratio_to_floor"]
    limit: float
    text: str

    def met(self, row: Row) -> bool | None:
        """Whether a row keeps the bound; None where the row lacks the value that is bounded."""
        value = row[self.on]
        return None if value is None else value <= self.limit


def times_floor(factor: float) -> Bound:
    """At most `factor` times the floor."""
    return Bound("ratio_to_floor", factor, f"<= {factor:g} x floor")


def below_peer(factor: float) -> Bound:
    """At least `factor` times faster or leaner than the peer."""
    return Bound("ratio_to_peer", 1 / factor, f"<= 1/{factor:g} x peer")


def megabytes(amount: float) -> Bound:
    """At most this many MB."""
    return Bound("ours", amount, f"<= {amount:g} MB")


@dataclass(frozen=True, slots=True)
class Figure:
    """One row of the table: what is measured, and the bounds set on it (none: reported only)."""

    what: What
    bounds: tuple[Bound, ...] = ()

    @property
    def limit(self) -> str | None:
        """The bounds as one string."""
        return ", ".join(bound.text for bound in self.bounds) or None


@dataclass(frozen=True, slots=True)
class Case:
    """Entries measured on the same inputs.

    `shape` is the size the figures are for, `small` a toy size for warming up and for tests. With `agreement`, the
    values computed by ours and by the peer must be equal to this relative tolerance, else there is no row but a
    `BenchError`.
    """

    name: str
    shape: Shape
    small: Shape
    entries: Mapping[EntryName, Entry]
    figures: tuple[Figure, ...]
    agreement: float | None = None

    def available(self) -> tuple[EntryName, ...]:
        """The entries that can run here, in the order in which they take turns."""
        return tuple(name for name, entry in self.entries.items() if not entry.missing)

    def rows(self, bench: str, measured: Mapping[EntryName, Measured], *, judged: bool = True) -> list[Row]:
        """The table rows of this case; `judged=False` (toy sizes) leaves `within_limit` empty."""
        return [self._row(bench, figure, measured, judged) for figure in self.figures]

    def _row(self, bench: str, figure: Figure, measured: Mapping[EntryName, Measured], judged: bool) -> Row:
        values = {name: values.median(figure.what) for name, values in measured.items()}
        ours, peer, floor = values["ours"], values.get("peer"), values.get("floor")
        if ours is None:
            raise BenchError(f"bench `{bench}`, case `{self.name}`: no {figure.what} was measured for ours")
        row = Row(
            bench=bench,
            case=self.name if judged else f"{self.name} (toy size)",
            what=figure.what,
            ours=ours,
            peer=peer,
            floor=floor,
            unit=UNITS[figure.what],
            peer_name=self._peer_name(figure.what, measured.get("peer")),
            ratio_to_peer=_ratio(ours, peer),
            ratio_to_floor=_ratio(ours, floor),
            limit=figure.limit,
            within_limit=None,
        )
        if judged and figure.bounds:
            kept = [bound.met(row) for bound in figure.bounds]
            # A broken bound decides; otherwise one that could not be looked at leaves the question open.
            row["within_limit"] = False if False in kept else None if None in kept else True
        return row

    def _peer_name(self, what: What, peer: Measured | None) -> str | None:
        entry = self.entries.get("peer")
        if entry is None:
            return None
        if entry.missing:
            return f"{entry.title} (not installed)"
        if what == "time" and peer is not None and 0 < len(peer.seconds) < ROUNDS:
            return f"{entry.title} ({len(peer.seconds)} rounds)"
        return entry.title

    def check_agreement(self, bench: str, measured: Mapping[EntryName, Measured]) -> None:
        """Raise `BenchError` when ours and the peer computed different values."""
        if self.agreement is None or "peer" not in measured:
            return
        ours, peer = measured["ours"].value, measured["peer"].value
        if not math.isclose(ours, peer, rel_tol=self.agreement):
            raise BenchError(
                f"bench `{bench}`, case `{self.name}`: ours and {self.entries['peer'].title} must compute the same "
                f"value to {self.agreement:g}, got {ours!r} and {peer!r}"
            )


@dataclass(slots=True)
class Measured:
    """What the child processes reported about one entry."""

    value: float = math.nan
    seconds: list[float] = field(default_factory=list)
    memory: float | None = None
    process_memory: float | None = None

    def median(self, what: What) -> float | None:
        """The median time in seconds, or the peak in MB."""
        if what == "time":
            return statistics.median(self.seconds) if self.seconds else None
        return self.memory if what == "memory" else self.process_memory


def _ratio(ours: float, other: float | None) -> float | None:
    return ours / other if other else None


def time_in_turns(calls: Mapping[EntryName, Call], device: torch.device) -> dict[EntryName, Measured]:
    """Run the calls alternately and return every single time.

    One warm-up each, which also settles the number of rounds: `ROUNDS`, more while the whole stays short. A peer slower
    than `SLOW_PEER` sits out after `SLOW_PEER_ROUNDS`.
    """
    turns = list(calls)
    measured: dict[EntryName, Measured] = {name: Measured() for name in turns}
    warm: dict[EntryName, float] = {}
    for name, call in calls.items():
        warm[name], measured[name].value = _clocked(call, device)
    rounds = min(MORE_ROUNDS, max(ROUNDS, math.ceil(LONG_ENOUGH / max(sum(warm.values()), 1e-9))))
    for index in range(rounds):
        # Reversing every other round, so that no entry always follows the same one.
        for name in turns[::-1] if index % 2 else turns:
            if name == "peer" and warm[name] > SLOW_PEER and index >= SLOW_PEER_ROUNDS:
                continue
            seconds, _ = _clocked(calls[name], device)
            measured[name].seconds.append(seconds)
    return measured


def _clocked(call: Call, device: torch.device) -> tuple[float, float]:
    _synchronize(device)
    with _no_garbage_collection():
        begin = time.perf_counter()
        value = call()
        _synchronize(device)
        return time.perf_counter() - begin, value


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    """What runs meanwhile leaves no garbage of an earlier run to be swept, and is not stopped for its own."""
    gc.collect(1)
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def peak_memory(
    build: Callable[[Shape, torch.device], Call], case: Case, device: torch.device, *, small: bool
) -> Measured:
    """Peak memory of one run of an entry, above the baseline with its inputs built; call it in a fresh process."""
    build(case.small, device)()
    call = build(case.small if small else case.shape, device)
    gc.collect()
    peak = _CudaPeak(device) if device.type == "cuda" else _ResidentPeak()
    value = call()
    _synchronize(device)
    above, whole = peak.read()
    return Measured(value=value, memory=above / 1e6, process_memory=whole / 1e6)


class _CudaPeak:
    """Peak of torch's CUDA allocator since construction, in bytes: above what was allocated then, and in all."""

    def __init__(self, device: torch.device) -> None:
        import torch

        self.device = device
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        self.before = torch.cuda.memory_allocated(device)

    def read(self) -> tuple[int, int]:
        import torch

        peak = torch.cuda.max_memory_allocated(device=self.device)
        return peak - self.before, peak


class _ResidentPeak:
    """Peak resident set of this process since construction, in bytes: above what was resident then, and in all.

    Linux lets a process reset its high-water mark (`VmHWM`) by writing 5 to `/proc/self/clear_refs`. Where that is not
    allowed the mark of the whole life of the process stands in for it: an upper bound on the second number, and on the
    first one only if building the inputs never took more than they keep.
    """

    def __init__(self) -> None:
        _return_free_memory()
        self.resettable = _reset_high_water_mark()
        self.before = _proc_status("VmRSS") if self.resettable else _life_peak()

    def read(self) -> tuple[int, int]:
        peak = _proc_status("VmHWM") if self.resettable else _life_peak()
        return max(peak - self.before, 0), peak


def _return_free_memory() -> None:
    """Hand freed heap pages back to the system, so that the baseline does not hide part of the run (glibc only)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None) if os.name == "posix" else None
    if trim is not None:
        trim(0)


def _reset_high_water_mark() -> bool:
    try:
        with open("/proc/self/clear_refs", "w") as stream:
            stream.write("5")
    except OSError:
        return False
    return True


def _proc_status(key: str) -> int:
    with open("/proc/self/status") as stream:
        for line in stream:
            if line.startswith(key + ":"):
                return int(line.split()[1]) * 1024
    raise BenchError(f"/proc/self/status has no line `{key}`")


def _life_peak() -> int:
    try:
        import resource
    except ImportError:
        raise BenchError("peak memory cannot be read on this system: no /proc and no getrusage") from None
    kilo = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * kilo
