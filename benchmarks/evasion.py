"""Square and HopSkipJump against the undefended and the defended Fashion-MNIST victim, in this process and over HTTP; for docs/benchmarks.md.

    python -m benchmarks.evasion [--only bundle,audit,http,benign,page] [--pictures 50]

Works on the bundle of `python -m benchmarks.run` (out/bench/seed-0): the hardened victim is sealed anew with feature squeezing and with detectors that act. What is in
out/bench/evasion already is not made again. Pictures are test rows; honest callers are those of `benchmarks.streams`, which neither training nor calibration saw.

The parts: the audit (`--plan evasion`, every picture from an account of its own), the same attacks over HTTP with an API key for each picture (the alarm's row is what the
operator reads of the running server), and eight draws of 1,000 honest callers of 500 rows.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
from benchmarks.streams import SEED, SHIFTS

from benchmarks import detection, pages, streams
from garrison import datasets
from garrison.attacks.evasion.base import Evasion, Pictures
from garrison.attacks.evasion.hopskipjump import HopSkipJump
from garrison.attacks.evasion.square import Square
from garrison.attacks.measures import wilson
from garrison.attacks.oracle import LabelsOnly, Oracle
from garrison.audit.arms import choose_arms
from garrison.audit.cache import TrialCache
from garrison.audit.data import load_data
from garrison.audit.plan import load_plan
from garrison.audit.report.content import EvasionCard, Report, Share
from garrison.audit.report.json import parse
from garrison.audit.report.write import write_report
from garrison.audit.run import run_audit
from garrison.audit.targets import HttpTarget, guarded, unguarded
from garrison.bundle.key_files import read_private_key
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.bundle.secret import read_secret, secret_path
from garrison.client import Client
from garrison.confidence import upper_limit
from garrison.config import Config, ServerConfig
from garrison.crypto.owner import OwnerPublicKey
from garrison.errors import UnavailableError
from garrison.guard.defenses.watch import load_detector
from garrison.guard.detectors.base import Detector
from garrison.hardening.scoring import open_session, score
from garrison.hardening.watching import calibrate_watch, sums
from garrison.sealing.inputs import rows_from_arrays
from garrison.sealing.options import SealOptions
from garrison.sealing.seal import seal
from garrison.sealing.sources import draft_from_hardened
from garrison.server.key_file import add_key
from garrison.server.operator import Wish, ask_servers
from garrison.server.root import assemble, background
from garrison.types import Array, DefenseSpec

ROOT = Path(__file__).parents[1]
OUT = ROOT / "out" / "bench" / "evasion"
COMMAND = "make bench ONLY=evasion"
REPORT = OUT / "report" / "report.json"
PARTS = ("bundle", "audit", "http", "benign", "page")
CALLERS, DRAWS = 1_000, 8
HTTP: dict[str, tuple[Evasion, int, bool]] = {
    "square, probabilities": (Square(epsilon=0.06), 200, False),
    "square, labels": (Square(epsilon=0.06), 200, True),
    "hopskipjump L2, labels": (HopSkipJump(norm="l2", epsilon=1.5), 300, True),
}
"""Attack, rows for a picture, whether it uses labels alone."""


def trusted() -> list[OwnerPublicKey]:
    return [OwnerPublicKey.from_pem((SEED / "owner.pub").read_bytes())]


def calibration() -> Array:
    with np.load(SEED / "training" / "calibration.npz") as held:
        found: Array = held["x"]
    return found


def bundle() -> Path:
    """The hardened victim with squeezing and armed detectors, sealed."""
    path = OUT / "bundle"
    if path.exists():
        return path
    OUT.mkdir(parents=True, exist_ok=True)
    rows = rows_from_arrays({"x": calibration()})
    options = SealOptions(name="fashion", defenses=("feature-squeezing:bits=2,window=0,false_alarms=0.02",))
    draft = draft_from_hardened(SEED / "hardened", options, rows)
    chain = {spec.name: spec for spec in draft.guard}
    watch = DefenseSpec(name="watch", parameters={"detectors": kept("detectors", detectors), "action": "misinform"})
    front = [chain["bounds"], DefenseSpec(name="sanctions"), DefenseSpec(name="projection"), chain["max-probability"]]
    guard = (*front, chain["feature-squeezing"], watch, chain["adaptive-misinformation"], chain["release"])
    seal(dataclasses.replace(draft, guard=guard), read_private_key(SEED / "owner.key", None), path)
    return path


def detectors() -> dict[str, Any]:
    """Those that `garrison harden` would put into the chain."""
    session = open_session((SEED / "hardened" / "model.onnx").read_bytes())
    looks = (DefenseSpec(name="projection"), DefenseSpec(name="max-probability"))
    facts = streams.opened().manifest.facts()
    inputs = {facts.inputs[0].name: calibration()}
    return calibrate_watch(lambda x: score(session, x, ["probabilities"]), facts, looks, inputs).detectors


def opened(path: Path) -> tuple[VerifiedBundle, bytes | None]:
    secret = secret_path(path)
    return verify(path, trusted()), read_secret(secret) if secret.exists() else None


def audit(pictures: int) -> None:
    """The report of the plan `evasion`; one with as many pictures is kept."""
    plan = msgspec.structs.replace(load_plan("evasion"), pictures=pictures)
    if REPORT.exists() and kept_report().plan.pictures == pictures:
        return
    served, key = opened(bundle())
    plain, _ = opened(SEED / "plain")
    arms = choose_arms(guarded(served, key), reference=served, baseline=plain, key=key, plans=plan.arms)
    begun = time.monotonic()
    cache = TrialCache(REPORT.parent / ".cache")
    rows = load_data(plan, arms.defended.facts)
    report = run_audit(plan, arms, rows, cache=cache, report=lambda m, s: print(f"{s:.2f} {m}", flush=True))
    print(f"audited in {time.monotonic() - begun:.0f} s", flush=True)
    write_report(report, REPORT.parent)


def kept_report() -> Report:
    if not REPORT.exists():
        raise SystemExit(f"{REPORT} is not there yet: --only audit makes it")
    return parse(REPORT.read_bytes())


def right_pictures(count: int) -> tuple[Array, Array]:
    """Pictures from the end of the test split that the plain model and the service name rightly."""
    test = datasets.load("fashion-mnist", "test")
    x, y = test.x[-3_000:], np.asarray(test.y)[-3_000:].astype(np.int64)
    good = np.ones(len(x), dtype=np.bool_)
    for path in (SEED / "plain", bundle()):
        good &= unguarded(opened(path)[0]).raw(x).argmax(axis=1) == y
    rows = np.flatnonzero(good)[:count]
    return x[rows], y[rows]


def over_http(count: int) -> dict[str, Any]:
    """Each attack over HTTP, one API key a picture: success, and the row of the key's first alarm. What was found with as many pictures is kept."""
    path = OUT / "http.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    x, y = right_pictures(count)
    for arm, served in (("undefended", SEED / "plain"), ("defended", bundle())):
        for name, (attack, budget, labels) in HTTP.items():
            if found.get(f"{name}, {arm}", {}).get("pictures") == len(x):
                continue
            found[f"{name}, {arm}"] = _http_arm(served, attack, budget, (x, y), labels=labels)
            keep(path, found)
            print(name, arm, {k: v for k, v in found[f"{name}, {arm}"].items() if k != "queries"}, flush=True)
    return found


def alarms_of(state: Path) -> list[Any]:
    """What the operator of the running server reads; nothing of a model that has no detectors."""
    try:
        return [alarm for one in ask_servers(state, Wish()) for model in one.models for alarm in model.alarms]
    except UnavailableError:
        return []


def _http_arm(
    path: Path, attack: Evasion, budget: int, pictures: tuple[Array, Array], *, labels: bool
) -> dict[str, Any]:
    x, y = pictures
    bare = unguarded(opened(path)[0])
    with tempfile.TemporaryDirectory() as folder:
        state, keys = Path(folder) / "state", Path(folder) / "keys.json"
        secrets = [add_key(keys, f"attacker-{i}") for i in range(len(x))]
        another = add_key(keys, "another-user")
        config = Config(server=ServerConfig(port=0, state=str(state), isolation="none", keys=str(keys)))
        with background(assemble(config, [path], trusted())) as url:
            clients = [Client(url, api_key=key) for key in (another, *secrets)]
            target = HttpTarget(clients[0], url, accounts=clients[1:])
            oracle: Oracle = LabelsOnly(target) if labels else target
            asked = Pictures(x, y, None, np.arange(1, len(x) + 1))
            judges = {
                "served": lambda rows: target.query(rows).labels,
                "undefended": lambda rows: bare.raw(rows).argmax(axis=1),
            }
            trial = attack.carry_out(oracle, asked, judges, budget=budget, seed=0, at_once=16)
            told = alarms_of(state)
            for client in clients:
                client.close()
    first: dict[str, int] = {}
    for alarm in told:
        if alarm.action:
            first[alarm.caller] = min(alarm.row, first.get(alarm.caller, alarm.row))
    rows = [first.get(f"attacker-{i}", 0) for i in range(len(x))]
    return {
        "pictures": len(x),
        "budget": budget,
        "epsilon": attack.epsilon,
        "norm": attack.norm,
        "served": int(trial.fools["served"].sum()),
        "undefended": int(trial.fools["undefended"].sum()),
        "queries": trial.queries.tolist(),
        "at": trial.succeeded_at.tolist(),
        "rows": rows,
    }


def benign() -> dict[str, Any]:
    """How many of 1,000 honest callers, each alone, any detector alarms; in several draws."""
    served, _ = opened(bundle())
    given = next(spec for spec in served.manifest.guard if spec.name == "watch").parameters["detectors"]
    detectors: Mapping[str, Detector] = {name: load_detector(name, dict(one)) for name, one in given.items()}
    alarmed, by_detector = [], dict.fromkeys(detectors, 0)
    for seed in range(DRAWS):
        callers = [detection.seen_of(one) for one in streams.honest(CALLERS, seed=17 + seed)]
        over = {name: sums(d, callers).max(axis=1) >= d.threshold for name, d in detectors.items()}
        alarmed.append(int(np.logical_or.reduce(list(over.values())).sum()))
        for name, found in over.items():
            by_detector[name] += int(found.sum())
    return {
        "callers": CALLERS,
        "kinds": list(SHIFTS),
        "alarmed": alarmed,
        "upper_95": upper_limit(sum(alarmed), CALLERS * DRAWS),
        "by_detector": by_detector,
    }


def keep(path: Path, found: Any) -> None:
    """Write it whole or not at all: what is there is not made again."""
    part = path.with_suffix(".part")
    part.write_text(json.dumps(found, indent=1))
    part.replace(path)


def kept(name: str, make: Callable[[], Any] | None = None) -> Any:
    """What was made, now or before.

    Args:
        make: makes it where it is not there yet; None where another part does.
    """
    path = OUT / f"{name}.json"
    if not path.exists():
        if make is None:
            raise SystemExit(f"{path} is not there yet: --only {name} makes it")
        keep(path, make())
    return json.loads(path.read_text())


def percent(share: Share | None) -> str:
    if share is None or share.low is None or share.high is None:
        return "-"
    return f"{100 * share.value:.0f} % ({100 * share.low:.0f} to {100 * share.high:.0f})"


def audit_table(cards: tuple[EvasionCard, ...]) -> list[str]:
    head = "attack | target | fools the service | fools its model without the guard | questions to success | change | alarmed | questions to the alarm"
    lines = [f"| {head} |", "|" + "---|" * 8]
    for c in cards:
        at, change = ("-" if v is None else f"{v:,.3g}" for v in (c.queries_to_success, c.distortion))
        alarm = f"{c.alarmed} of {c.pictures}" if c.watched else "no detectors"
        when = "-" if c.alarm_queries is None else f"{c.alarm_queries:.0f} (at most {c.alarm_most})"
        name = f"{c.attack}, {c.norm} {c.epsilon:.3g}, {c.budget} questions"
        lines.append(
            f"| {name} | {c.target} | {percent(c.success_served)} | {percent(c.success_undefended)} | {at} | {change} | {alarm} | {when} |"
        )
    return lines


def honest_table(report: Report) -> list[str]:
    """What each target costs honest users."""
    lines = ["| honest users of | right | lost to the guard, points | unanswered or uncertain |", "|" + "---|" * 4]
    for name in report.targets:
        found = [report.find(name, metric) for metric in ("served_accuracy", "benign_loss_guard", "unanswered")]
        cells = ["-" if f is None or f.value is None else f"{100 * f.value:.1f}" for f in found]
        lines.append(f"| {name} | {cells[0]} % | {cells[1]} | {cells[2]} |")
    return lines


def http_table(found: Mapping[str, Any]) -> list[str]:
    head = "over HTTP, a key for each picture | fools the service | fools its model without the guard | keys alarmed | rows to the first alarm: median, most | of those, before success"
    lines = [f"| {head} |", "|" + "---|" * 6]
    for name, one in found.items():
        rows, at, n = np.array(one["rows"]), np.array(one["at"]), one["pictures"]
        rang = rows[rows > 0]
        shares = [wilson(one[judge], n, "pictures") for judge in ("served", "undefended")]
        cells = [percent(Share(e.value, e.low, e.high)) for e in shares]
        when = f"{np.median(rang):.0f}, {rang.max()}" if len(rang) else "-"
        before = int(((rows > 0) & ((at == 0) | (rows <= at))).sum()) if len(rang) else "-"
        lines.append(
            f"| {name}, {one['norm']} {one['epsilon']:.3g} | {cells[0]} | {cells[1]} | {len(rang)} of {n} | {when} | {before} |"
        )
    return lines


def page(report: Report, http: Mapping[str, Any], honest: Mapping[str, Any]) -> str:
    asked = (
        f"{len(honest['alarmed'])} draws of {honest['callers']:,} honest callers of 500 rows ({', '.join(honest['kinds'])}): alarmed "
        f"{', '.join(map(str, honest['alarmed']))}"
    )
    by = ", ".join(f"{name} {count}" for name, count in honest["by_detector"].items())
    text = [
        pages.made(COMMAND),
        "",
        report.headline,
        "",
        *audit_table(report.evasions),
        "",
        *honest_table(report),
        "",
        *http_table(http),
        "",
        f"{asked}; the share is below {100 * honest['upper_95']:.2f} % with 95 % confidence. By detector: {by}.",
    ]
    return "\n".join(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS))
    parser.add_argument("--pictures", type=int, default=50)
    given = parser.parse_args()
    parts = given.only.split(",")
    if unknown := set(parts) - set(PARTS):
        parser.error(f"the parts are {', '.join(PARTS)}; found {', '.join(sorted(unknown))}")
    streams.make(["test", "calibration"])
    if "bundle" in parts:
        bundle()
    if "benign" in parts:
        print(kept("benign", benign))
    if "http" in parts:
        over_http(given.pictures)
    if "audit" in parts:
        audit(given.pictures)
    if "page" in parts:
        pages.write("evasion", page(kept_report(), kept("http"), kept("benign")))


if __name__ == "__main__":
    main()
