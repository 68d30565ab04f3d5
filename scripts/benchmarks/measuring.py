# SPDX-License-Identifier: Apache-2.0
"""What the benchmark measures: paired times, peak memory, operations and waits of host and device for each other."""

import gc
import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, NamedTuple
from unittest.mock import patch

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from measure_memory import peak_memory

Work = Callable[[], Any]
# Everything that there is to measure of a case.
ALL = ("time", "memory", "counts")


@dataclass(frozen=True)
class Setting:
    """How a run measures: the device, height and width of frames, timed pairs, and whether all is tiny."""

    device: str = "cpu"
    size: tuple[int, int] = (480, 864)
    repeats: int = 7
    quick: bool = False
    model: str | None = None


@dataclass(frozen=True)
class Bound:
    """What a figure must be, and where we want it: at least for a speed-up, at most for a cost.

    `figure` names one of those of [`measure`], or a number it was made of, such as `"syncs.ours"`.
    """

    figure: str
    must: float | None
    aim: float | None = None
    at_least: bool = False

    def holds(self, value: float) -> bool | None:
        """Whether the must holds; `None` where there is none."""
        if self.must is None:
            return None
        return value >= self.must if self.at_least else value <= self.must

    def value(self, figures: dict[str, dict[str, Any]]) -> float:
        """The number that is bounded."""
        name, _, part = self.figure.partition(".")
        return figures[name][part or "value"]


def faster(must: float | None, aim: float | None = None) -> Bound:
    """A bound on the speed-up: the baseline's time over ours."""
    return Bound("speed_up", must, aim, at_least=True)


@dataclass(frozen=True)
class Case:
    """Two ways to do the same work.

    Args:
        name (`str`): What distinguishes it from the other cases of its row; may be empty.
        baseline, ours (`Callable`): The two ways.
        bounds (`tuple[Bound, ...]`): What must hold.
        found (`dict[str, float]`): Figures that were found when the case was made, such as how far the results differ.
        measures (`tuple[str, ...]`): What to measure, of `"time"`, `"memory"` and `"counts"`.
        has_gradients (`bool`): Whether the work needs autograd.
        dtype (`torch.dtype`): In which ours multiplies.
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
    """What was measured of a case, by figure, and what must hold."""

    name: str
    bounds: tuple[Bound, ...]
    figures: dict[str, dict[str, Any]]


def results_of(cases: Callable[[Setting], Iterator[Case]], setting: Setting) -> Iterator[Result]:
    """Measure one case after the other."""
    for case in cases(setting):
        yield Result(case.name, case.bounds, measure(case, setting))


@dataclass(frozen=True)
class Counts:
    """What one call does: floating-point operations, operations that are no views, waits of host and device."""

    flops: int
    operations: int
    syncs: int


def measure(case: Case, setting: Setting) -> dict[str, dict[str, Any]]:
    """Every figure of a case.

    Returns:
        By name a `value` with what it was made of: `speed_up` with `quartiles` over the pairs and the median `seconds`
        of both ways; `limit`, the speed-up if ours did its operations as fast as a product of large matrices;
        `memory`, `flops`, `operations` and `syncs`, ours over the baseline's, with both; what the case found, as it
        is.
    """
    figures: dict[str, dict[str, Any]] = {name: {"value": value} for name, value in case.found.items()}
    with torch.set_grad_enabled(case.has_gradients):
        if "counts" in case.measures:
            theirs, ours = (vars(count(work, setting.device)) for work in (case.baseline, case.ours))
            figures |= {name: share(theirs[name], ours[name]) for name in theirs}
        if "memory" in case.measures:
            if "counts" not in case.measures:  # what is compiled is compiled before
                for work in (case.baseline, case.ours):
                    work()
            peaks = [peak_memory(work, setting.device) for work in (case.baseline, case.ours)]
            figures["memory"] = share(*peaks)
        if "time" in case.measures:
            figures["speed_up"] = compare_times(case.baseline, case.ours, setting)
        if case.measures == ALL and figures["flops"]["ours"] > 0:
            fastest = figures["flops"]["ours"] / product_speed(setting, case.dtype)
            figures["limit"] = {"value": figures["speed_up"]["seconds"]["baseline"] / fastest}
    return figures


def share(baseline: float, ours: float) -> dict[str, Any]:
    """A cost of ours as a share of the baseline's; `None` where that has none."""
    return {"value": ours / baseline if baseline else None, "baseline": baseline, "ours": ours}


# ---- time -----------------------------------------------------------------------------------------------------------


def compare_times(baseline: Work, ours: Work, setting: Setting) -> dict[str, Any]:
    """Let two ways take turns; how many times faster ours is."""
    gc.collect()
    gc.disable()  # else one of the two pays for what both left behind
    try:
        times = [tuple(seconds(work, setting.device) for work in (baseline, ours)) for _ in range(setting.repeats + 1)]
    finally:
        gc.enable()
    return summarise_pairs(times[1:])  # the first pair warms up


def summarise_pairs(times: Sequence[tuple[float, ...]]) -> dict[str, Any]:
    """Median and quartiles of the ratios of paired times, the baseline's and ours, and the median times."""
    ratios = [theirs / ours for theirs, ours in times]
    first, _, third = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
    theirs, ours = (statistics.median(column) for column in zip(*times, strict=True))
    return {
        "value": statistics.median(ratios),
        "quartiles": [first, third],
        "seconds": {"baseline": theirs, "ours": ours},
        "ratios": ratios,
    }


def seconds(work: Work, device: str = "cpu") -> float:
    """Seconds of one call: of the process on the CPU, whatever else runs there; between two events on a GPU."""
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
    """Floating-point operations per second of a product of large square matrices, which nothing exceeds."""
    side = 8192 if setting.device == "cuda" else 128 if setting.quick else 2048
    one, other = torch.randn(2, side, side).to(setting.device, dtype)
    return 2 * side**3 / min(seconds(lambda: one @ other, setting.device) for _ in range(10))


# ---- counts ---------------------------------------------------------------------------------------------------------


def count(work: Work, device: str) -> Counts:
    """Count what one call does."""
    waits = HostTracker() if device == "cpu" else SynchronisationWarnings()
    with waits, FlopCounterMode(display=False) as flops, OperationCounter() as operations:
        work()
    return Counts(flops.get_total_flops(), operations.count, waits.count)


class OperationCounter(TorchDispatchMode):
    """Counts operations of PyTorch that are no views: about as many kernels as a GPU would launch."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        is_view = func.is_view or func is torch.ops.aten._unsafe_view.default
        self.count += func.namespace == "aten" and not is_view
        return func(*args, **(kwargs or {}))


class SynchronisationWarnings:
    """Counts on a GPU how often PyTorch warns of a synchronisation."""

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
    for name in (
        "item",
        "tolist",
        "numpy",
        "__array__",
        "__bool__",
        "__float__",
        "__int__",
        "__index__",
        "__contains__",
    )
}
# Their results have a size that only the device knows.
SIZED_BY_CONTENT = {
    *(torch.nonzero, torch.Tensor.nonzero, torch.argwhere, torch.unique, torch.Tensor.unique, torch.bincount),
    *(torch.Tensor.bincount, torch.masked_select, torch.Tensor.masked_select, torch.equal, torch.Tensor.equal),
    *(torch.unique_consecutive, torch.Tensor.unique_consecutive, torch.isin, torch.allclose, torch.Tensor.allclose),
}
INDEXINGS = {torch.Tensor.__getitem__, torch.Tensor.__setitem__}


class HostTracker(TorchFunctionMode):
    """Counts on the CPU where a GPU would make the host wait, by following which tensors would be on the host.

    A CPU tensor that is copied to the CPU leaves no trace in PyTorch's dispatcher, so the calls themselves are read.
    Tensors are taken to be on the device, except what `cpu()` returns, what is made without a device, and what follows
    from such tensors alone. Waits are: `cpu()`, `item()` and its relatives, moving a tensor from the host to a device
    (unless `non_blocking`), making one there out of numbers, indexing with a host tensor (one for each) or a boolean
    one, and results whose size depends on content. A copy to the host by `to` must name `"cpu"`; what a function of
    PyTorch does inside is not seen.
    """

    def __init__(self):
        super().__init__()
        self.count = 0
        self.on_host = WeakTensorKeyDictionary()
        self.original = torch.from_numpy
        # The one maker of tensors that PyTorch does not announce.
        self.announced = patch.object(torch, "from_numpy", self.from_numpy)

    def __enter__(self) -> "HostTracker":
        self.announced.start()
        return super().__enter__()

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self.announced.stop()

    def from_numpy(self, array: Any) -> torch.Tensor:
        """`torch.from_numpy`, whose tensors are on the host."""
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
            result, to_host = result.view_as(result), True  # the same tensor may go on on the device
        elif func is torch.Tensor.to and names_device(args[1:], kwargs):
            self.count += to_host and not kwargs.get("non_blocking", False)
            result, to_host = result.view_as(result), False
        elif func in FACTORIES:
            to_host = kwargs.get("device") is None
        elif func in COPIES_FROM_HOST:
            to_host = kwargs.get("device") is None and not from_device
            self.count += kwargs.get("device") is not None and not from_device
        elif func in READS or func in SIZED_BY_CONTENT or is_where(func, args):
            self.count += from_device
        elif func in INDEXINGS:
            # A number under a boolean mask is filled in without a look at the mask.
            fills = len(args) == 3 and not isinstance(args[2], torch.Tensor)
            self.count += self.waits_of_indexing(args[0], args[1], counts_booleans=not fills)
            to_host = args[0] in self.on_host
        elif func is torch.repeat_interleave or func is torch.Tensor.repeat_interleave:
            self.count += len(tensors) > 1 and from_device and "output_size" not in kwargs
        if to_host:
            self.on_host.update((tensor, True) for tensor in tensors_in(result))
        return result

    def waits_of_indexing(self, indexed: torch.Tensor, index: Any, counts_booleans: bool) -> int:
        """Waits for one indexing of a device tensor."""
        if indexed in self.on_host:
            return 0
        parts = index if isinstance(index, tuple) else (index,)
        waits = sum(isinstance(part, list) or hasattr(part, "__array_interface__") for part in parts)
        for part in parts:
            if isinstance(part, torch.Tensor):
                waits += part in self.on_host or (part.dtype == torch.bool and counts_booleans)
        return waits


def tensors_in(tree: Any) -> Iterator[torch.Tensor]:
    """The tensors of nested lists, tuples and dictionaries."""
    if isinstance(tree, torch.Tensor):
        yield tree
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from tensors_in(part)
    elif isinstance(tree, dict):
        for part in tree.values():
            yield from tensors_in(part)


def names_device(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bool:
    """Whether the arguments of `to` name a device, themselves or as another tensor."""
    return any(
        isinstance(argument, (torch.device, torch.Tensor, str)) for argument in (*arguments, *keywords.values())
    )


def is_where(func: Callable[..., Any], arguments: tuple[Any, ...]) -> bool:
    """Whether this is `where` with a condition alone, which lists its places."""
    return func is torch.where and len(arguments) == 1


# ---- saved activations ----------------------------------------------------------------------------------------------


def saved_bytes(work: Work, parameters: Iterator[torch.Tensor]) -> int:
    """Bytes that autograd keeps for the backward pass of what `work` returns, each storage once, parameters not."""
    kept = {parameter.untyped_storage().data_ptr() for parameter in parameters}
    sizes: dict[int, int] = {}
    held = []  # so that no address is used twice

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in kept:
            sizes[storage.data_ptr()] = storage.nbytes()
            held.append(storage)
        return tensor

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        work()
    return sum(sizes.values())
