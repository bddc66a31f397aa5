"""What holds for the ids of one field: when a value gets a row, when it loses it, how many rows there may be.

Letters: F fields.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from model.admission import AdmissionRule
from model.features import Field
from model.hashing import Int64Array

NO_LIMIT = np.iinfo(np.int64).max
"""Stands for "for ever" and for "any number of rows"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FieldIdsConfig:
    """What is special about the ids of one field; what is left out is as for every field."""

    admission: int | None = None
    """Examples before a value gets its own row, at least 1; null: as the encoding says."""
    admission_rule: AdmissionRule | None = None
    """How examples admit; null: as the embedding's `admission.rule` says."""
    ttl_ms: int | None = None
    """A row that no example has needed for longer than this, in event time, is evicted; at least 1; null: never."""
    max_rows: int | None = None
    """Rows of this field, at most; beyond, the least recently seen go; at least 1; null: any number."""
    row_lr: float | None = None
    """Row-wise Adagrad's learning rate of this field's rows, greater than 0; null: as `optim.row_lr` says."""

    def __post_init__(self) -> None:
        for name in ("admission", "ttl_ms", "max_rows"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name}: {value} is not allowed; at least 1, or null")
        if self.row_lr is not None and not self.row_lr > 0:
            raise ValueError(f"row_lr: {self.row_lr} is not allowed; greater than 0, or null")


class IdRules:
    """The settings of every field as arrays over the fields of a model.

    Raises:
        ValueError: settings for a field that the model does not have, or whose ids are another field's.
    """

    def __init__(self, fields: Sequence[Field], configs: Mapping[str, FieldIdsConfig], rule: AdmissionRule) -> None:
        by_name = {one.name: one for one in fields}
        for name in configs:
            if name not in by_name:
                raise ValueError(f"embedding.fields: {name!r} is not a field; {', '.join(by_name)}")
            if by_name[name].ids_of != name:
                raise ValueError(f"embedding.fields: {name!r} takes the ids of {by_name[name].ids_of}; set them there")
        given = [configs.get(one.name, FieldIdsConfig()) for one in fields]
        self.examples_F: Int64Array = np.array(
            [config.admission or one.admission for one, config in zip(fields, given, strict=True)], np.int64
        )
        """Examples before a value gets a row; 0: the field admits none."""
        self.is_drawn_F: npt.NDArray[np.bool_] = np.array(
            [(config.admission_rule or rule) == "probability" for config in given], np.bool_
        )
        """Whether each example admits with probability 1/examples."""
        self.ttl_ms_F: Int64Array = np.array([config.ttl_ms or NO_LIMIT for config in given], np.int64)
        self.max_rows_F: Int64Array = np.array([config.max_rows or NO_LIMIT for config in given], np.int64)
        own = [np.nan if config.row_lr is None else config.row_lr for config in given]
        self.row_lr_F: npt.NDArray[np.float32] = np.array(own, np.float32)
        """Learning rate of the field's rows; NaN: that of all."""
