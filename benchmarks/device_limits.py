"""What a step could take at best: its products, its bytes, and how fast the device does nothing but those."""

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
_PRODUCTS = {aten.mm: 2, aten.addmm: 3, aten.bmm: 2, aten.baddbmm: 3}
"""Products, and how many tensors they take."""
_GATHERS = (aten.index_select, aten.embedding, aten.index)
_SCATTERS = (aten.index_put_, aten.index_put)
_COPY_BYTES = 1 << 28
_SEND_BYTES = 1 << 26


class Product(NamedTuple):
    """One matrix product of a step: which operation, on what."""

    operation: Any
    shapes: list[torch.Size]
    strides: list[tuple[int, ...]]
    dtype: torch.dtype

    @property
    def flops(self) -> int:
        """Multiplications and additions."""
        left, right = self.shapes[-2:]
        return 2 * left.numel() * right[-1]

    def operands(self, device: torch.device) -> list[Tensor]:
        """Returns random operands of these shapes and layouts."""
        return [
            torch.empty_strided(shape, stride, dtype=self.dtype, device=device).normal_()
            for shape, stride in zip(self.shapes, self.strides, strict=True)
        ]


class StepCounts(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch leaves it untyped
    """Counts what the operations of a step read and write while it is open; views move nothing.

    Each operation reads its inputs from memory and writes its outputs there, as separate kernels do; what stays in a
    cache between two of them is counted all the same. Gathers and scatters count the rows they touch, twice.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call] # torch leaves it untyped
        self.products: list[Product] = []
        self.product_bytes = 0
        self.other_bytes = 0
        self.num_operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        packet = func.overloadpacket
        if func.is_view:
            return result
        inputs = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, Tensor)]
        # An operation on lists of tensors returns nothing and writes (nearly all of) what it is given.
        outputs = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)] or inputs
        self.num_operations += 1
        if packet in _PRODUCTS:
            operands = inputs[: _PRODUCTS[packet]]
            strides = [one.stride() for one in operands]
            self.products.append(Product(packet, [one.shape for one in operands], strides, outputs[0].dtype))
            self.product_bytes += _num_bytes(inputs) + _num_bytes(outputs)
        elif packet in _GATHERS:
            self.other_bytes += 2 * _num_bytes(outputs) + _num_bytes(inputs[1:])
        elif packet in _SCATTERS:
            self.other_bytes += _num_bytes(inputs[1:]) + _num_bytes(inputs[-1:])
        else:
            self.other_bytes += _num_bytes(inputs) + _num_bytes(outputs)
        return result

    @property
    def flops(self) -> int:
        """Of all products."""
        return sum(product.flops for product in self.products)


def _num_bytes(tensors: list[Tensor]) -> int:
    return sum(tensor.nbytes for tensor in tensors)


def counted(step: Callable[[], object]) -> StepCounts:
    """Returns what one step does."""
    counts = StepCounts()
    with counts:
        step()
    return counts


def products_alone(counts: StepCounts, device: torch.device) -> Callable[[], None]:
    """Returns a run of a step's matrix products and nothing else, on random operands."""
    calls = [(product.operation, product.operands(device)) for product in counts.products]

    def run() -> None:
        for operation, operands in calls:
            operation(*operands)

    return run


def copy_bytes_per_s(device: torch.device) -> float:
    """Returns the bandwidth of a copy within the device's memory, bytes read plus bytes written."""
    source = torch.randn(_COPY_BYTES // 4, device=device)
    target = torch.empty_like(source)
    return 2 * _COPY_BYTES / best_s(lambda: target.copy_(source), device)


def send_bytes_per_s(device: torch.device, *, pinned: bool) -> float | None:
    """Returns the bandwidth from the host's memory to the device's; None on the CPU."""
    if device.type == "cpu":
        return None
    source = torch.empty(_SEND_BYTES // 4).normal_()
    source = source.pin_memory() if pinned else source
    target = torch.empty(source.shape, device=device)
    return _SEND_BYTES / best_s(lambda: target.copy_(source, non_blocking=pinned), device)


def best_s(work: Callable[[], object], device: torch.device, repeats: int = 10) -> float:
    """Returns the shortest of some runs in seconds; a ceiling is what is reached once.

    On the CPU those are of CPU time (one thread), so that other programs do not count; a device is waited for.
    """
    clock = time.process_time if device.type == "cpu" else time.perf_counter
    times = []
    for _ in range(repeats + 2):
        wait_for(device)
        start_s = clock()
        work()
        wait_for(device)
        times.append(clock() - start_s)
    return min(times[2:])


def wait_for(device: torch.device) -> None:
    """Waits until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
