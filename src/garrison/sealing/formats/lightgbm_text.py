"""Writes a model file for LightGBM anew, of what was read and checked.

LightGBM's loader trusts a file: sizes that contradict each other, a missing field or a line end of Windows crash it, or make it read and
write beyond its memory. So it never sees a file that came from elsewhere, but this text: every number is one that was read as a number, and
every count is counted here. Left out is what answers do not depend on (gains, weights, names of features, the training's parameters).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from garrison.sealing.formats.trees import Index


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """One tree as LightGBM numbers it: splits from 0, leaves by their complement.

    Attributes:
        numbers: by field name, whole numbers, in the order of the splits.
        threshold, leaf_value: real ones; a tree has one leaf more than splits.
        bounds, words: sets of categories, as bits in words; empty where no split asks for categories.
    """

    numbers: dict[str, Index]
    threshold: Sequence[float]
    leaf_value: Sequence[float]
    bounds: Sequence[int] = field(default=())
    words: Sequence[int] = field(default=())


def written(
    blocks: Sequence[Block], *, version: str, targets: int, features: int, objective: str, average: bool
) -> str:
    """The text; `objective` is empty where the sums are the answer."""
    head = ["tree", f"version={version}", f"num_class={targets}", f"num_tree_per_iteration={targets}", "label_index=0"]
    head.append(f"max_feature_idx={features - 1}")
    head += [f"objective={objective}"] if objective else []
    head += ["average_output"] if average else []
    head += [
        "feature_names=" + " ".join(f"f{i}" for i in range(features)),
        "feature_infos=" + " ".join(["none"] * features),
    ]
    # No sizes of trees: with them LightGBM reads on several threads, where an error cannot be told but ends the process.
    return "\n".join(
        [*head, "", *(line for i, block in enumerate(blocks) for line in _lines(i, block)), "end of trees", "", ""]
    )


def _lines(number: int, block: Block) -> list[str]:
    found = [f"Tree={number}", f"num_leaves={len(block.leaf_value)}", f"num_cat={max(0, len(block.bounds) - 1)}"]
    found += [f"{name}={_joined(values.tolist())}" for name, values in block.numbers.items()]
    found += [f"threshold={_joined(block.threshold)}", f"leaf_value={_joined(block.leaf_value)}"]
    if block.bounds:
        found += [f"cat_boundaries={_joined(block.bounds)}", f"cat_threshold={_joined(block.words)}"]
    return [*found, "is_linear=0", "shrinkage=1", "", ""]


def _joined(values: Sequence[float]) -> str:
    return " ".join(map(repr, values))
