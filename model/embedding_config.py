"""The configuration of the trainer's embedding rows."""

from dataclasses import dataclass, field
from typing import Literal

import torch

from model.admission import AdmissionConfig
from model.field_ids import FieldIdsConfig
from model.precision import Precision


@dataclass(frozen=True, slots=True, kw_only=True)
class EmbeddingConfig:
    """Embedding rows: their width, their start, which values have one, and for how long."""

    width: int = 16
    """Floats per row; at least 1."""
    dtype: Precision = "float32"
    """What the rows' weights are kept as, in the trainer, in snapshots and in rankers. `bfloat16` takes half of the
    memory and is coarser; a step computes in float32 and rounds its weights by chance (`model.rounding`)."""
    init_scale: float = 0.05
    """Standard deviation of the default and missing rows at the start, and of new rows if they are `random`."""
    new_rows: Literal["default", "random"] = "default"
    """What a new row starts as: `default`, a copy of its field's default row, so that admission changes no prediction;
    or `random`, drawn from the seed and the value."""
    admission: AdmissionConfig = AdmissionConfig()
    """Which values get a row."""
    max_rows: int | None = None
    """Rows of all fields together, at most; beyond, the least recently seen go; at least 1; null: any number."""
    hot_rows: int | None = None
    """Rows kept in memory by each trainer process, at most; beyond, the least recently seen go to a store on the local
    disk beside the checkpoints, and come back when they are needed; at least 1; null: all stay in memory."""
    evictions_per_step: int = 1_000
    """Rows of one field that one step evicts, at most, beyond as many as it admitted; at least 1."""
    fields: dict[str, FieldIdsConfig] = field(default_factory=dict)
    """What is special about the ids of single fields, by the field's name (`user_id`, `item.category`, ...)."""

    @property
    def torch_dtype(self) -> torch.dtype:
        """`dtype` as a type of tensors."""
        return torch.bfloat16 if self.dtype == "bfloat16" else torch.float32

    def __post_init__(self) -> None:
        if self.width < 1:
            raise ValueError(f"width: {self.width} is not allowed; at least 1")
        if not self.init_scale >= 0:
            raise ValueError(f"init_scale: {self.init_scale} is not allowed; at least 0")
        if self.max_rows is not None and self.max_rows < 1:
            raise ValueError(f"max_rows: {self.max_rows} is not allowed; at least 1, or null")
        if self.hot_rows is not None and self.hot_rows < 1:
            raise ValueError(f"hot_rows: {self.hot_rows} is not allowed; at least 1, or null")
        if self.evictions_per_step < 1:
            raise ValueError(f"evictions_per_step: {self.evictions_per_step} is not allowed; at least 1")
