"""Every set by its name. An addition is one entry in one of the three files below."""

from __future__ import annotations

from collections.abc import Mapping

from garrison.datasets.entry import Entry
from garrison.datasets.image_sets import IMAGE_SETS
from garrison.datasets.model_files import MODEL_FILES
from garrison.datasets.table_sets import TABLE_SETS

ENTRIES: Mapping[str, Entry] = {**IMAGE_SETS, **TABLE_SETS, **MODEL_FILES}
