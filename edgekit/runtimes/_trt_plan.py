"""`plan.json`: how the device's TensorRT is to build its engine from `model.onnx`.

{"format": "edgekit-tensorrt", "version": 1, ...} and the fields of `Plan`. What the device decides (who takes
what TensorRT cannot, where the engine is kept) are engine options, see `edgekit.runtimes.tensorrt`.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgekit import codec
from edgekit.errors import EngineError
from edgekit.runtimes._base import DTYPES

FORMAT, VERSION = "edgekit-tensorrt", 1
PRECISIONS = ("fp32", "fp16", "int8")


@dataclass(frozen=True)
class Tensor:
    name: str
    datatype: str
    shape: tuple[int, ...]
    """-1 is the batch."""


@dataclass(frozen=True)
class Range:
    """An optimisation profile's sizes of one open input."""

    input: str
    minimum: tuple[int, ...]
    optimum: tuple[int, ...]
    """What kernels are tuned for."""
    maximum: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    precision: str
    """fp32, fp16 or int8 (explicit QDQ): the graph says it too, see `strongly_typed`."""
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    ranges: tuple[Range, ...]
    """One per input with an open batch; empty: every size is fixed."""
    workspace_mib: int = 512
    """Most memory that a kernel may use for scratch while the engine is built and run."""
    optimization_level: int = 3
    """0 to 5: more tries more kernels; TensorRT's default is 3."""
    strongly_typed: bool = True
    """Data types are the graph's and nobody else's. Builders before TensorRT 9 do not know this; they are
    allowed fp16 or int8 as `precision` says."""
    tf32: bool = False
    """On, fp32 products have 10 bits of mantissa on Ampere and later: not the certified arithmetic."""
    sparse_weights: bool = False
    """Some layer's weights are 2:4 sparse (two of four neighbours are zero): sparse kernels may be tried."""
    version_compatible: bool = False
    """Off: an engine belongs to one TensorRT version and is rebuilt for another."""
    timing_cache: bool = True
    """Remember how fast kernels were, which makes later builds faster. Holds no weights."""
    format: str = FORMAT
    version: int = VERSION

    @property
    def max_batch(self) -> int:
        """Most rows of one inference; 0 where the model's batch is fixed."""
        return min((one.maximum[0] for one in self.ranges), default=0)


def parse(data: bytes) -> Plan:
    """Raises EngineError for anything but a plan of this version."""
    what = "tensorrt: plan.json"
    plan = codec.from_json(Plan, data, what=what, error=EngineError)
    if (plan.format, plan.version) != (FORMAT, VERSION):
        raise EngineError(f"{what} is {plan.format} version {plan.version}", "update edgekit")
    known = {item.name: item for item in plan.inputs}
    sane = (
        plan.precision in PRECISIONS
        and plan.inputs
        and all(item.datatype in DTYPES for item in (*plan.inputs, *plan.outputs))
        and plan.workspace_mib > 0
        and 0 <= plan.optimization_level <= 5
        and {name for name, item in known.items() if -1 in item.shape} == {one.input for one in plan.ranges}
        and all(_fits(one, known[one.input].shape) for one in plan.ranges)
    )
    if not sane:
        raise EngineError(f"{what} contradicts itself", "build the variant again")
    return plan


def _fits(one: Range, shape: tuple[int, ...]) -> bool:
    if not len(one.minimum) == len(one.optimum) == len(one.maximum) == len(shape):
        return False
    sizes = zip(one.minimum, one.optimum, one.maximum, shape, strict=True)
    return all(0 < low <= mid <= high and fixed in (-1, low, high) for low, mid, high, fixed in sizes)
