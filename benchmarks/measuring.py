# SPDX-License-Identifier: Apache-2.0
"""Measuring: paired times, operations, peak memory, and synchronisations of host and device."""

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

Work = Callable[[], Any]
ALL = ("time", "memory", "counts")
MIB = 2**20


@dataclass(frozen=True)
class Setting:
    """Device, height and width of frames, timed pairs, whether models are tiny, and the trained model of row 13."""

    device: str = "cpu"
    size: tuple[int, int] = (480, 864)
    repeats: int = 7
    quick: bool = False
    model: str | None = None


@dataclass(frozen=True)
class Bound:
    """Required and desired value of a figure or of its part, such as `"syncs.ours"`; maxima unless `at_least`."""

    figure: str
    must: float | None
    aim: float | None = None
    at_least: bool = False

    def holds(self, value: float) -> bool | None:
        """Whether the requirement is met; `None` without one."""
        if self.must is None:
            return None
        return value >= self.must if self.at_least else value <= self.must

    def value(self, figures: dict[str, dict[str, Any]]) -> float:
        """The bounded number."""
        name, _, part = self.figure.partition(".")
        return figures[name][part or "value"]


def faster(must: float | None, aim: float | None = None) -> Bound:
    """A bound on the speed-up: the baseline's time over ours."""
    return Bound("speed_up", must, aim, at_least=True)


@dataclass(frozen=True)
class Case:
    """Two implementations of the same work.

    `found` are further figures, such as the difference of the results; `dtype` is that of our products.
    """

    name: str
    baseline: Work
    ours: Work
    bounds: tuple[Bound, ...] = ()
    found: Mapping[str, float] = field(default_factory=dict)
    measures: tuple[str, ...] = ALL
    has_gradients: bool = False
    dtype: torch.dtype = torch.float32


class Result(NamedTuple):
    """Figures of a case, and their bounds."""

    name: str
    bounds: tuple[Bound, ...]
    figures: dict[str, dict[str, Any]]


def measure(case: Case, setting: Setting) -> dict[str, dict[str, Any]]:
    """Measure a case: the figures of README.md by name, each with its `value` and the numbers behind it."""
    figures: dict[str, dict[str, Any]] = {name: {"value": value} for name, value in case.found.items()}
    with torch.set_grad_enabled(case.has_gradients):
        if "counts" in case.measures:
            theirs, ours = (count(work, setting.device) for work in (case.baseline, case.ours))
            figures |= {name: share(theirs[name], ours[name]) for name in theirs}
        if "memory" in case.measures:
            if "counts" not in case.measures:  # compilation must not count
                case.baseline()
                case.ours()
            peaks = [peak_memory(work, setting.device) for work in (case.baseline, case.ours)]
            figures["memory"] = share(*peaks)
        if "time" in case.measures:
            works = {"baseline": case.baseline, "ours": case.ours}
            figures["speed_up"] = summarise_pairs(**take_turns(works, setting.repeats, setting.device))
        if case.measures == ALL and figures["flops"]["ours"] > 0:
            fastest = figures["flops"]["ours"] / product_speed(setting, case.dtype)
            figures["limit"] = {"value": figures["speed_up"]["seconds"]["baseline"] / fastest}
    return figures


def share(baseline: float, ours: float) -> dict[str, Any]:
    """Our cost relative to the baseline's; `None` if that is zero."""
    return {"value": ours / baseline if baseline else None, "baseline": baseline, "ours": ours}


# ---- time -----------------------------------------------------------------------------------------------------------


def take_turns(works: Mapping[str, Work], turns: int, device: str = "cpu", warm_up: int = 1) -> dict[str, list[float]]:
    """Seconds of every call, by name; the works run alternately."""
    times: dict[str, list[float]] = {name: [] for name in works}
    gc.collect()
    gc.disable()  # garbage must not count for the work during which it is collected
    try:
        for _ in range(warm_up + turns):
            for name, work in works.items():
                times[name].append(seconds(work, device))
    finally:
        gc.enable()
    return {name: each[warm_up:] for name, each in times.items()}


def summarise_pairs(baseline: Sequence[float], ours: Sequence[float]) -> dict[str, Any]:
    """Median and quartiles of the ratios of paired times, the baseline's over ours, and the median times."""
    ratios = [above / below for above, below in zip(baseline, ours, strict=True)]
    first, _, third = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    return {
        "value": statistics.median(ratios),
        "quartiles": [first, third],
        "seconds": {"baseline": statistics.median(baseline), "ours": statistics.median(ours)},
        "ratios": ratios,
    }


def seconds(work: Work, device: str = "cpu") -> float:
    """Duration of one call: CPU time of the process, or time between two events on a GPU."""
    if device == "cpu":
        start = time.process_time()
        work()
        return time.process_time() - start
    before, after = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    before.record()
    work()
    after.record()
    torch.cuda.synchronize()
    return before.elapsed_time(after) / 1e3


@cache
def product_speed(setting: Setting, dtype: torch.dtype) -> float:
    """Floating-point operations per second of a product of large square matrices."""
    side = 8192 if setting.device == "cuda" else 128 if setting.quick else 2048
    one, other = torch.randn(2, side, side).to(setting.device, dtype)
    return 2 * side**3 / min(seconds(lambda: one @ other, setting.device) for _ in range(10))


# ---- counts ---------------------------------------------------------------------------------------------------------


def count(work: Work, device: str) -> dict[str, int]:
    """`flops`, `operations` that are no views, and synchronisations (`syncs`) of one call."""
    waits = HostTracker() if device == "cpu" else SynchronisationWarnings()
    with waits, FlopCounterMode(display=False) as flops, OperationCounter() as operations:
        work()
    return {"flops": flops.get_total_flops(), "operations": operations.count, "syncs": waits.count}


def flops_of(work: Work) -> int:
    """Floating-point operations of one call; a multiplication with its addition is two."""
    with FlopCounterMode(display=False) as counter:
        work()
    return counter.get_total_flops()


class OperationCounter(TorchDispatchMode):
    """Counts operations of PyTorch that are no views, roughly the kernel launches on a GPU."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_view = func.is_view or func is torch.ops.aten._unsafe_view.default
        self.count += func.namespace == "aten" and not is_view
        return func(*args, **(kwargs or {}))


class SynchronisationWarnings:
    """Counts PyTorch's warnings of synchronisations on a GPU."""

    def __init__(self):
        self.count = 0
        self.recorder = warnings.catch_warnings(record=True)

    def __enter__(self) -> "SynchronisationWarnings":
        self.before = torch.cuda.get_sync_debug_mode()
        self.caught = self.recorder.__enter__()
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        return self

    def __exit__(self, *error: Any) -> None:
        torch.cuda.set_sync_debug_mode(self.before)
        self.recorder.__exit__(*error)
        self.count = sum("synchronizing CUDA operation" in str(warning.message) for warning in self.caught)


FACTORIES = {
    getattr(torch, name)
    for name in ("arange", "empty", "eye", "full", "linspace", "ones", "rand", "randint", "randn", "randperm", "zeros")
}
COPIES_FROM_HOST = {torch.tensor, torch.as_tensor}
READS = {
    getattr(torch.Tensor, name)
    for names in ("item tolist numpy", "__array__ __bool__ __contains__ __float__ __index__ __int__")
    for name in names.split()
}
# Only the device knows the size of their results.
SIZED_BY_CONTENT = {
    getattr(place, name)
    for place in (torch, torch.Tensor)
    for name in ("nonzero", "unique", "unique_consecutive", "bincount", "masked_select", "equal", "allclose")
} | {torch.argwhere, torch.isin}
# Of the arguments of `to`.
NAMES_DEVICE = (torch.device, torch.Tensor, str)
INDEXINGS = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}


class HostTracker(TorchFunctionMode):
    """Counts on the CPU the synchronisations that a GPU would need, by tracking which tensors would be on the host.

    PyTorch's dispatcher does not see a copy from CPU to CPU, so this reads the calls. Tensors count as on the device,
    except results of `cpu()`, tensors made without a device, and what follows from such tensors alone.
    Synchronisations are: `cpu()`, `item()` and its relatives, moving a tensor to a device (unless `non_blocking`),
    making one there from numbers, indexing with a host tensor (one for each) or a boolean one, and results of a size
    that depends on content. A copy to the host by `to` must name `"cpu"`. Calls inside PyTorch's functions are not
    seen.
    """

    def __init__(self):
        super().__init__()
        self.count = 0
        self.on_host = WeakTensorKeyDictionary()
        self.original = torch.from_numpy
        # The only factory that is no torch function.
        self.announced = patch.object(torch, "from_numpy", self.from_numpy)

    def __enter__(self) -> "HostTracker":
        self.announced.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.announced.stop()

    def from_numpy(self, array: Any) -> torch.Tensor:
        """`torch.from_numpy`, which returns tensors on the host."""
        tensor = self.original(array)
        self.on_host[tensor] = True
        return tensor

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if getattr(func, "__name__", "") in ("__get__", "__set__") and not isinstance(result, torch.Tensor):
            return result
        tensors = list(tensors_in((args, kwargs)))
        from_device = any(tensor not in self.on_host for tensor in tensors)
        to_host = bool(tensors) and not from_device
        if func is torch.Tensor.cpu or (func is torch.Tensor.to and "cpu" in args[1:]):
            self.count += from_device
            result, to_host = result.view_as(result), True  # the same tensor may still be used on the device
        elif func is torch.Tensor.to and any(isinstance(each, NAMES_DEVICE) for each in (*args[1:], *kwargs.values())):
            self.count += to_host and not kwargs.get("non_blocking", False)
            result, to_host = result.view_as(result), False
        elif func in FACTORIES:
            to_host = kwargs.get("device") is None
        elif func in COPIES_FROM_HOST:
            to_host = kwargs.get("device") is None and not from_device
            self.count += kwargs.get("device") is not None and not from_device
        elif func in READS or func in SIZED_BY_CONTENT or (func is torch.where and len(args) == 1):
            self.count += from_device
        elif func in INDEXINGS:
            # Filling a boolean mask with a number does not read the mask.
            fills = len(args) == 3 and not isinstance(args[2], torch.Tensor)
            self.count += self.waits_of_indexing(args[0], args[1], counts_booleans=not fills)
            to_host = args[0] in self.on_host
        elif func is torch.repeat_interleave or func is torch.Tensor.repeat_interleave:
            self.count += len(tensors) > 1 and from_device and "output_size" not in kwargs
        if to_host:
            self.on_host.update((tensor, True) for tensor in tensors_in(result))
        return result

    def waits_of_indexing(self, indexed: torch.Tensor, index: Any, counts_booleans: bool) -> int:
        """Synchronisations of one indexing."""
        if indexed in self.on_host:
            return 0
        parts = index if isinstance(index, tuple) else (index,)
        waits = sum(isinstance(part, list) or hasattr(part, "__array_interface__") for part in parts)
        for part in parts:
            if isinstance(part, torch.Tensor):
                waits += part in self.on_host or (part.dtype == torch.bool and counts_booleans)
        return waits


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """The tensors in nested lists, tuples and dictionaries."""
    return (leaf for leaf in tree_leaves(tree) if isinstance(leaf, torch.Tensor))


# ---- memory ---------------------------------------------------------------------------------------------------------


def peak_memory(step: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """Peak bytes of what `step` allocates (on a GPU, beyond what was held before)."""
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        step()
    held: dict[int, int] = {}
    total = peak = 0
    for address, size in allocations(profile.profiler.kineto_results.experimental_event_tree()):
        if size > 0:
            held[address] = size
            total += size
            peak = max(peak, total)
        else:  # memory from before, such as the content of a cache, does not count
            total -= held.pop(address, 0)
    return peak


def allocations(events: Iterable[Any]) -> list[tuple[int, int]]:
    """Address and size of every allocation, and of every release with a negative size, in order."""
    found, ahead = [], [*events][::-1]
    while ahead:
        event = ahead.pop()
        ahead += event.children[::-1]
        if event.tag == torch._C._profiler._EventType.Allocation:
            found.append((event.start_time_ns, event.extra_fields.ptr, event.extra_fields.alloc_size))
    found.sort(key=lambda each: each[0])
    return [(address, size) for _, address, size in found]


def saved_bytes(work: Work, parameters: Iterator[torch.Tensor]) -> int:
    """Bytes that autograd saves for the backward pass of `work`, each storage once, without parameters."""
    kept = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    sizes: dict[int, int] = {}
    held = []  # no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(storage)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(sizes.values())


def process_bytes(kind: str) -> int:
    """Memory of this process as Linux reports it: `VmRSS` now, `VmHWM` at its peak."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{kind}:"))


def reset_process_peak() -> None:
    """Let `VmHWM` start from the memory held now."""
    Path("/proc/self/clear_refs").write_text("5")


# ---- output ---------------------------------------------------------------------------------------------------------


def table(rows: Mapping[str, Mapping[str, float | str | None]]) -> str:
    """Rows of numbers by column, aligned; a missing number is a dash."""
    columns = list(dict.fromkeys(column for row in rows.values() for column in row))
    lines = [["", *columns]]
    lines += [[name, *(cell(row.get(column)) for column in columns)] for name, row in rows.items()]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([first.ljust(widths[0]), *map(str.rjust, others, widths[1:])]) for first, *others in lines
    )


def cell(value: float | str | None) -> str:
    """A number with three digits behind the point below ten, and two above."""
    if value is None or isinstance(value, str):
        return value or "-"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.2f}"
