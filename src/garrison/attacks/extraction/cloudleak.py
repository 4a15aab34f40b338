"""CloudLeak: ask about adversarial examples of an own network, and fine-tune a pretrained one on the answers.

Yu, Yang, Zhang, Tsai, Ho and Jin, "CloudLeak: Large-Scale Deep Learning Models Stealing Through Adversarial Examples" (NDSS
2020). The thief takes a pretrained network of a model zoo, keeps its first blocks and retrains the rest. In rounds it makes
malicious examples on that network from source and guide pictures, asks about those between whose first two classes its network
hesitates most (smallest p1 - p2), and trains on.

Ours, where the paper leaves it open: the first round asks natural pictures, whose answers say which pictures may be guides (those
of another class than the source's) and give the mean distance within a class; features have unit length; the clone that is handed
over is fine-tuned from the pretrained weights on all answers, those between rounds go on from the last.

Not covered: the choice of a zoo's network by trying several, stopping when the clone no longer improves (the budget is spent).
The rows of a smaller budget are the first rows of a larger one.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import numpy as np

from garrison.attacks.adversarial.features import ALPHA, intra_class_distance
from garrison.attacks.base import Attack, Goal
from garrison.attacks.checks import at_least, positive, share
from garrison.attacks.exam import Loot, Picture
from garrison.attacks.extraction.clones import Recipe
from garrison.attacks.extraction.finetune import Borrowed
from garrison.attacks.extraction.knockoff import one_hot, targets_of
from garrison.attacks.extraction.malicious import Examples, Making, Sources, made_once, phi_apart, unit_of
from garrison.attacks.extraction.pixels import Pixels, picture_shape
from garrison.attacks.extraction.zoo import NetworkName, backbone
from garrison.attacks.knowledge import Knowledge
from garrison.attacks.oracle import Answers, Labels, MeteredOracle, OracleFacts
from garrison.errors import MissingExtraError
from garrison.types import FloatArray

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch", "audit") from error

LARGEST_SMALL = 40
"""Height and width up to which grey pictures go to the small network of the zoo."""
REUSED = {"efficientnet-lite0": 18, "small-cnn": 2}
"""Blocks that are reused where the parameter does not say."""
AVERAGED = 0.4
_ROUND_STEPS = 30
_SHOWN = 4


class CloudLeak(Attack, frozen=True):
    """Ask about malicious examples, fine-tune a pretrained network.

    Attributes:
        examples: which are asked: "featurefool", "cw", "pgd", "feature-adversary" or "random" (natural pictures).
        sampling: "margin" asks those of smallest p1 - p2, "random" asks all that are made.
        network: of the zoo; "auto" takes "small-cnn" for small grey pictures, else "efficientnet-lite0".
        reused: blocks of the network, from the first, that stay as they are; -1 for 2 of 4, or all 18 of EfficientNet-Lite0.
        public: labelled set that "small-cnn" was trained on; "" for fresh weights.
        public_rows: most rows of it.
        side: height and width to which pictures are brought for EfficientNet-Lite0.
        first: natural pictures in the first round.
        round_size: rows asked in each later round.
        candidates: examples made for each one asked, where sampling is "margin".
        layer: number of the block whose output is phi, from 1; 0 for the last.
        alpha: of FeatureFool's margin, alpha - mean distance within a class.
        margin: FeatureFool's margin as a share of the distance between source and guide, in place of that; -1 for none.
        trade_off: FeatureFool's lambda.
        epsilon: largest change of a value, for "pgd" and "feature-adversary".
        steps: of the optimiser that makes an example.
        epochs, fewest_steps, batch, learning_rate, weight_decay, balance: see `garrison.attacks.extraction.clones.Recipe`.
    """

    name: ClassVar[str] = "cloudleak"
    goal: ClassVar[Goal] = Goal.EXTRACTION

    examples: Examples = "featurefool"
    sampling: Literal["margin", "random"] = "margin"
    network: Literal["auto", "efficientnet-lite0", "small-cnn"] = "auto"
    reused: int = -1
    public: str = "mnist:train"
    public_rows: int = 12_000
    side: int = 96
    first: int = 100
    round_size: int = 110
    candidates: float = 2.0
    layer: int = 0
    alpha: float = ALPHA
    margin: float = -1.0
    trade_off: float = 5.0
    epsilon: float = 0.1
    steps: int = 20
    epochs: int = 20
    fewest_steps: int = 400
    batch: int = 64
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    balance: float = 0.0

    def __post_init__(self) -> None:
        at_least(
            self,
            1,
            "public_rows",
            "side",
            "first",
            "round_size",
            "steps",
            "epochs",
            "fewest_steps",
            "batch",
            "candidates",
        )
        positive(self, "candidates", "trade_off", "learning_rate")
        positive(self, "weight_decay", zero=True)
        share(self, "epsilon")
        share(self, "balance", zero=True)
        if min(self.reused + 1, self.layer) < 0 or max(self.reused, self.layer) > max(REUSED.values()):
            raise ValueError("reused must be -1 or a number of blocks, layer 0 or the number of a block")
        if not math.isfinite(self.alpha) or not -1 <= self.margin <= 1:
            raise ValueError("alpha must be finite, margin -1 or a share up to 1")

    @property
    def recipe(self) -> Recipe:
        """How the clone that is handed over is trained."""
        return Recipe(
            self.epochs,
            self.fewest_steps,
            self.batch,
            self.learning_rate,
            self.weight_decay,
            AVERAGED,
            self.balance,
        )

    @property
    def making(self) -> Making:
        """How examples are made."""
        margin = None if self.margin == -1 else self.margin
        return Making(self.examples, self.layer, margin, self.alpha, self.trade_off, self.epsilon, self.steps)

    def lacks(self, knowledge: Knowledge) -> str:
        own = knowledge.in_distribution
        return "" if len(knowledge.surrogate if own is None else own) else "it has no pictures to begin with"

    def obstacle(self, facts: OracleFacts) -> str:
        if facts.regression:
            return "it steals classifiers, and the model answers real values"
        if picture_shape(facts.shape) is None:
            return f"it makes malicious pictures, and rows of shape {facts.shape} are no pictures"
        return ""

    def run(self, oracle: MeteredOracle, knowledge: Knowledge, rng: np.random.Generator) -> Loot:
        rows = knowledge.surrogate if knowledge.in_distribution is None else knowledge.in_distribution
        pixels = Pixels.of(oracle.facts, rows)
        theft = _Theft(self, oracle, Sources(pixels.pictures(rows), rng), self._own(oracle.facts, pixels, rng), rng)
        if knowledge.labelled is not None:
            theft.know(pixels.pictures(knowledge.labelled.x), knowledge.labelled.y)
        theft.ask(theft.sources.draw(self.first), ())
        while oracle.remaining:
            theft.round()
        return theft.loot()

    def _own(self, facts: OracleFacts, pixels: Pixels, rng: np.random.Generator) -> Borrowed:
        shape = picture_shape(facts.shape) or facts.shape
        small = shape[0] == 1 and max(shape[1:]) <= LARGEST_SMALL
        wanted: NetworkName = "small-cnn" if small else "efficientnet-lite0"
        chosen = wanted if self.network == "auto" else self.network
        seed = int(rng.integers(2**63))
        zoo = backbone(chosen, side=self.side, public=self.public, public_rows=self.public_rows, seed=seed)
        reused = REUSED[chosen] if self.reused == -1 else min(self.reused, len(zoo.blocks))
        return Borrowed.fresh(zoo, reused, facts.classes, pixels)


@dataclass(slots=True, eq=False)
class _Theft:
    """What a run has so far. Rows that were refused or named no class are counted as asked and not learnt from."""

    attack: CloudLeak
    oracle: MeteredOracle
    sources: Sources
    own: Borrowed
    rng: np.random.Generator
    carried: list[torch.Tensor] = field(default_factory=list)
    targets: list[FloatArray] = field(default_factory=list)
    anchors: list[FloatArray] = field(default_factory=list)
    classes: list[Labels] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    changes: list[float] = field(default_factory=list)
    leads: list[float] = field(default_factory=list)
    turned: list[bool] = field(default_factory=list)

    def know(self, pictures: FloatArray, labels: Labels) -> None:
        """Pictures whose classes are known: to learn from, and guides."""
        self.carried.append(self.own.carried(pictures))
        self.targets.append(one_hot(labels, self.oracle.facts.classes))
        self.anchors.append(pictures)
        self.classes.append(labels)

    def ask(self, pictures: FloatArray, trail: tuple[FloatArray, ...]) -> None:
        """Ask as far as the budget goes, and remember. `trail`: sources and guides of examples; natural pictures have none."""
        asked = self.own.pixels.rows(pictures[: self.oracle.remaining])
        if not len(asked):
            return
        answers = self.oracle.query(asked)
        # What the service saw, rounded to its numbers, is what the clone learns.
        seen, usable = self.own.pixels.pictures(asked), answers.usable
        if usable.any():
            self.carried.append(self.own.carried(seen[usable]))
            self.targets.append(targets_of(answers, self.oracle.facts.classes)[usable])
        if trail:
            self._tell(seen, tuple(part[: len(seen)] for part in trail), answers)
        elif usable.any():
            self.anchors.append(seen[usable])
            self.classes.append(answers.labels[usable])

    def round(self) -> None:
        """Make examples, choose, ask."""
        attack, sources = self.attack, self.attack.round_size
        chooses = attack.sampling == "margin"
        count = round(attack.candidates * sources) if chooses else sources
        drawn = self.sources.draw(count)
        if not self.targets:  # nothing was answered yet: there is no guide and nothing to hesitate about
            self.ask(drawn[:sources], ())
            return
        if chooses or attack.examples != "random":
            self._learn(Recipe(1, _ROUND_STEPS, attack.batch, attack.learning_rate, attack.weight_decay, 0.0, 0.0))
        guides = self._guides(drawn)
        made = self._make(drawn, guides)
        order = self._hesitation(made)[:sources] if chooses else np.arange(count)
        self.ask(made[order], () if attack.examples == "random" else (drawn[order], guides[order]))

    def loot(self) -> Loot:
        """The clone from the pretrained weights on all answers, and what was seen on the way."""
        self._learn(self.attack.recipe, anew=True)
        told = self.own.told() | {"rows learnt from": float(sum(len(part) for part in self.targets))}
        if self.changes:
            told["mean L2 change of an example"] = float(np.mean(self.changes))
            told["mean feature distance to the guide minus to the source"] = float(np.mean(self.leads))
            told["share of examples that the service calls another class than the own network calls the source"] = (
                float(np.mean(self.turned))
            )
        return Loot(self.own.clone(), told, pictures=tuple(self.pictures))

    def _learn(self, recipe: Recipe, *, anew: bool = False) -> None:
        seed = 0 if anew else int(self.rng.integers(2**63))
        if self.targets:
            self.own.learn(torch.cat(self.carried), np.concatenate(self.targets), recipe, seed, anew=anew)

    def _guides(self, sources: FloatArray) -> FloatArray:
        """For each source an answered picture of another class than the own network gives it; any where there is none."""
        anchors, classes = np.concatenate(self.anchors), np.concatenate(self.classes)
        believed = self.own.probabilities(self.own.carried(sources)).argmax(axis=1)
        chances = np.where(classes[None, :] != believed[:, None], self.rng.random((len(sources), len(anchors))), -1.0)
        found: FloatArray = anchors[chances.argmax(axis=1)]
        return found

    def _make(self, sources: FloatArray, guides: FloatArray) -> FloatArray:
        seed = int(self.rng.integers(2**63))
        anchors, classes = np.concatenate(self.anchors), np.concatenate(self.classes)
        how, intra = self.attack.making, 0.0
        if how.examples == "featurefool" and len(anchors) > 1:
            intra = intra_class_distance(unit_of(self.own, how, anchors), torch.as_tensor(classes))
        return made_once(how, self.own, sources, guides, intra=intra, seed=seed)

    def _hesitation(self, made: FloatArray) -> Labels:
        """Numbers of the examples, those first between whose two likeliest classes the own network hesitates most."""
        p = np.sort(self.own.probabilities(self.own.carried(made)), axis=1)
        lead: FloatArray = p[:, -1] - p[:, -2] if p.shape[1] > 1 else p[:, -1]
        return np.argsort(lead, kind="stable")

    def _tell(self, seen: FloatArray, trail: tuple[FloatArray, ...], answers: Answers) -> None:
        sources, guides = trail
        how = self.attack.making
        believed = self.own.probabilities(self.own.carried(sources)).argmax(axis=1)
        to_guide, to_source = (phi_apart(self.own, how, seen, other) for other in (guides, sources))
        self.changes += np.linalg.norm((seen - sources).reshape(len(seen), -1), axis=1).tolist()
        self.leads += (to_guide - to_source).tolist()
        self.turned += (answers.labels != believed)[answers.usable].tolist()
        for i in range(min(len(seen), _SHOWN - len(self.pictures))):
            called = f"the service calls it class {answers.labels[i]}" if answers.usable[i] else "not answered"
            self.pictures.append(_picture(how.examples, int(believed[i]), called, sources[i], guides[i], seen[i]))


def _picture(
    examples: str, believed: int, called: str, source: FloatArray, guide: FloatArray, result: FloatArray
) -> Picture:
    change = result - source
    largest = float(np.abs(change).max())
    shown = (0.5 + 0.5 * change / (largest or 1.0)).clip(0.0, 1.0).astype(np.float32)
    caption = (
        f"{examples}: the thief's network takes the source for class {believed}; {called}. Change of L2 "
        f"{float(np.linalg.norm(change)):.2f}, at most {largest:.2f} a value; shown stretched."
    )
    return Picture(caption, ("source", "guide", "perturbation", "result"), (source, guide, shown, result))
