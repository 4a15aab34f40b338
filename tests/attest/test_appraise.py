"""What every technology has to keep: each refusal names its step, beside a control that differs in that one thing and passes."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.attest.makers import WORLDS
from tests.attest.worlds import (
    DAY,
    GUARD,
    KEYS,
    MANIFEST,
    NONCE,
    NOW,
    OWNER,
    World,
    change,
    failed,
    judge,
    make_evidence,
)

from garrison.attest.evidence import Evidence, Quote, Technology
from garrison.attest.policy import Policy
from garrison.attest.steps import STEPS
from garrison.crypto.canonical import canonical_json, sha256_hex
from garrison.errors import AttestationError

OTHER = {
    "hpke": {"keys": change(KEYS, hpke=b"x" * 32)},
    "signing": {"keys": change(KEYS, signing=b"x" * 32)},
    "suite": {"keys": change(KEYS, suite="other")},
    "epoch": {"keys": change(KEYS, epoch=2)},
    "end": {"keys": change(KEYS, expires=KEYS.expires + 1)},
    "nonce": {"nonce": b"x" * 32},
    "manifest": {"manifest": canonical_json({"name": "digits", "version": 3, "format": "other"})},
    "guard": {"guard": sha256_hex(b"no guard at all")},
    "owner": {"owner": sha256_hex(b"somebody else")},
}


def test_what_is_right_passes_under_the_default_policy_with_its_measurement(world: World) -> None:
    report = judge(make_evidence(world), world.policy())
    assert failed(report) == []
    assert report.require() is report
    assert [step.name for step in report.steps] == list(STEPS)
    assert report.measurement in world.policy().measurements[world.technology]


@pytest.mark.parametrize("other", OTHER)
def test_a_quote_binds_keys_nonce_manifest_and_guard(world: World, other: str) -> None:
    assert failed(judge(make_evidence(world, bound=OTHER[other]), world.policy())) == ["report-data"]
    shown = judge(make_evidence(world, **OTHER[other]), world.policy())
    assert "report-data" in failed(shown)
    both = judge(make_evidence(world, bound=OTHER[other], **OTHER[other]), world.policy())
    assert failed(both) == ([other] if other in ("nonce", "owner") else [])


@pytest.mark.parametrize("nonce", [b"y" * 32, NONCE[:31], b"", NONCE + b"\0"])
def test_old_evidence_is_refused(world: World, nonce: bytes) -> None:
    assert failed(judge(make_evidence(world), world.policy(), nonce=nonce)) == ["nonce"]


def test_an_empty_nonce_never_passes_even_where_both_agree(world: World) -> None:
    evidence = make_evidence(world, bound={"nonce": b""}, nonce=b"")
    assert failed(judge(evidence, world.policy(), nonce=b"")) == ["nonce"]


def test_a_measurement_that_is_not_listed_is_refused(world: World) -> None:
    evidence, right = make_evidence(world), world.policy().measurements[world.technology]
    assert failed(judge(evidence, world.policy(measurements={}))) == ["measurement"]
    assert failed(judge(evidence, world.policy(measurements={world.technology: ("00" * 48,)}))) == ["measurement"]
    assert failed(judge(evidence, world.policy(measurements={world.technology: ("00", *right)}))) == []


def test_debug_is_refused_unless_allowed(world: World) -> None:
    evidence = make_evidence(world, quote={"debug": True})
    assert "debug" in failed(judge(evidence, world.policy()))
    allowed = judge(evidence, world.policy(allow_debug=True))
    # dcap-qvl verifies no debug quote at all; a Nitro enclave in debug mode has no measurement.
    assert failed(allowed) == {"snp": [], "nitro": ["measurement"]}.get(world.technology, ["debug"])


@pytest.mark.parametrize("days", [(30, -1), (-1, 30)], ids=["expired", "not yet"])
@pytest.mark.parametrize("technology", WORLDS)
def test_a_certificate_out_of_its_time_is_refused(technology: str, days: tuple[int, int]) -> None:
    world: World = WORLDS[technology](days=days)
    evidence = make_evidence(world)
    assert failed(judge(evidence, world.policy())) == ["certificates"]


def test_the_clock_is_the_callers(world: World) -> None:
    later = NOW.timestamp() + 60 * DAY
    keys = change(KEYS, expires=int(later) + 3600)
    evidence = make_evidence(world, bound={"keys": keys}, keys=keys)
    assert failed(judge(evidence, world.policy(), now=later)) == ["certificates"]
    at_home = judge(make_evidence(world), world.policy(), now=NOW.timestamp() + 30)
    assert failed(at_home) == []


def test_a_root_that_is_not_trusted_is_refused(world: World) -> None:
    evidence = make_evidence(world)
    assert failed(judge(evidence, world.policy(roots={world.technology: ("ab" * 32,)}))) == ["certificates"]
    assert failed(judge(evidence, world.policy(roots={}))) == ["certificates"], "the vendors' roots are not ours"


def test_a_technology_that_is_not_accepted_is_not_looked_at(world: World) -> None:
    others: tuple[Technology, ...] = tuple(t for t in ("snp", "tdx", "sgx", "nitro") if t != world.technology)
    report = judge(make_evidence(world), world.policy(technologies=others))
    assert failed(report) == ["technology"]
    assert {step.status for step in report.steps[1:]} == {"skipped"}


def test_one_technologys_quote_is_not_anothers(worlds: dict[str, World]) -> None:
    for name, world in worlds.items():
        quote = make_evidence(world).quote
        for other in worlds.values():
            if other.technology != name:
                evidence = make_evidence(other, quote={})
                swapped = change(evidence, quote=change(quote, technology=other.technology))
                assert failed(judge(swapped, other.policy())) == ["format"]


def test_rollback_to_an_older_model_is_refused(world: World) -> None:
    old = canonical_json({"name": "digits", "version": 2})
    evidence = make_evidence(world, bound={"manifest": old}, manifest=old, version=2)
    assert failed(judge(evidence, world.policy(least_version=3))) == ["version"]
    assert failed(judge(evidence, world.policy(least_version=2))) == []
    assert failed(judge(make_evidence(world), world.policy(least_version=3))) == []


def test_evidence_that_calls_an_old_manifest_by_a_new_version_is_refused(world: World) -> None:
    old = canonical_json({"name": "digits", "version": 2})
    evidence = make_evidence(world, bound={"manifest": old}, manifest=old, version=3)
    assert failed(judge(evidence, world.policy(least_version=3))) == ["manifest", "version"]


@pytest.mark.parametrize(
    ("step", "wrong", "right"),
    [
        ("manifest", {"model": "other"}, {"model": "digits"}),
        ("manifest", {"manifests": ("ab" * 32,)}, {"manifests": ("ab" * 32, sha256_hex(MANIFEST))}),
        ("guard", {"guards": ("ab" * 32,)}, {"guards": (GUARD, "ab" * 32)}),
    ],
)
def test_the_policy_may_name_model_manifest_and_guard(
    world: World, step: str, wrong: dict[str, Any], right: dict[str, Any]
) -> None:
    evidence = make_evidence(world)
    assert failed(judge(evidence, world.policy(**wrong))) == [step]
    assert failed(judge(evidence, world.policy(**right))) == []


@pytest.mark.parametrize(
    "keys",
    [
        change(KEYS, expires=int(NOW.timestamp())),
        change(KEYS, hpke=b""),
        change(KEYS, signing=b"s" * 31),
        change(KEYS, epoch=0),
        change(KEYS, epoch=2**32),
        change(KEYS, expires=int(NOW.timestamp()) + DAY + 1),
    ],
    ids=["over", "no HPKE key", "short signing key", "no epoch", "an epoch that fits no envelope", "too far an end"],
)
def test_keys_that_cannot_be_used_are_refused(world: World, keys: Any) -> None:
    assert failed(judge(make_evidence(world, bound={"keys": keys}, keys=keys), world.policy())) == ["keys"]


def test_the_hosts_own_model_is_refused(world: World) -> None:
    """The host tells the enclave whose keys to believe: with one of its own it could serve anything under the model's name."""
    newer = canonical_json({"name": "digits", "version": 999})
    shown: dict[str, Any] = {"manifest": newer, "owner": sha256_hex(b"the host"), "version": 999}
    evidence = make_evidence(world, bound={"manifest": newer, "owner": shown["owner"]}, **shown)
    assert failed(judge(evidence, world.policy(model="digits", least_version=3))) == ["owner"]
    assert failed(judge(evidence, world.policy(owners=(OWNER, shown["owner"])))) == [], "control: the same, listed"


def test_who_lists_neither_owners_nor_models_is_refused(world: World) -> None:
    evidence = make_evidence(world)
    assert failed(judge(evidence, world.policy(owners=()))) == ["owner"]
    listed = judge(evidence, world.policy(owners=(), manifests=(sha256_hex(MANIFEST),)))
    assert failed(listed) == []
    assert {step.name: step.status for step in listed.steps}["owner"] == "skipped"


def test_the_policy_says_how_far_off_the_keys_end_may_be(world: World) -> None:
    keys = change(KEYS, expires=int(NOW.timestamp()) + 2 * DAY)
    evidence = make_evidence(world, bound={"keys": keys}, keys=keys)
    assert failed(judge(evidence, world.policy())) == ["keys"]
    assert failed(judge(evidence, world.policy(most_key_seconds=2 * DAY))) == []


DEEP = b'{"name": "digits", "version": 3, "more": ' + b"[" * 5000 + b"]" * 5000 + b"}"


@pytest.mark.parametrize(
    "manifest", [b"", b"{", b"[]", b'{"name": "digits"}', b"\xff", b'{"name": 1, "version": 3}', DEEP]
)
def test_a_manifest_that_names_nothing_is_refused(world: World, manifest: bytes) -> None:
    evidence = make_evidence(world, bound={"manifest": manifest}, manifest=manifest)
    assert failed(judge(evidence, world.policy())) == ["manifest"]


def test_the_error_carries_the_whole_report(world: World) -> None:
    report = judge(make_evidence(world), Policy())
    with pytest.raises(AttestationError, match="certificates") as caught:
        report.require()
    assert caught.value.report is report


def test_collateral_of_the_verifiers_own_replaces_what_came(worlds: dict[str, World]) -> None:
    for name, broken in (("snp", "vcek"), ("tdx", "dcap")):
        world = worlds[name]
        good = make_evidence(world)
        bad = change(good, quote=change(good.quote, collateral={**good.quote.collateral, broken: b"garbage"}))
        assert failed(judge(bad, world.policy())) == ["certificates"]
        nothing = change(good, quote=change(good.quote, collateral={}))
        assert failed(judge(nothing, world.policy())) == ["certificates"]


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(
    technology=st.sampled_from(["sim", *WORLDS]),
    quote=st.binary(max_size=1300),
    collateral=st.dictionaries(st.sampled_from(["vcek", "ask", "ark", "dcap", "root"]), st.binary(max_size=60)),
    manifest=st.binary(max_size=40),
)
def test_garbage_is_refused_and_never_a_crash(
    technology: Technology, quote: bytes, collateral: dict[str, bytes], manifest: bytes
) -> None:
    evidence = Evidence(
        quote=Quote(technology=technology, quote=quote, collateral=collateral),
        keys=KEYS,
        nonce=NONCE,
        model="digits",
        version=3,
        manifest=manifest,
        guard=GUARD,
        owner=OWNER,
    )
    assert failed(judge(evidence, Policy(allow_simulated=True)))


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
@given(data=st.data())
def test_a_damaged_quote_is_refused_and_never_a_crash(worlds: dict[str, World], data: st.DataObject) -> None:
    """Cut, lengthened, or spliced. DCAP's envelope may change without effect, so there only a typed outcome is asked for."""
    world = worlds[data.draw(st.sampled_from(list(WORLDS)))]
    evidence = _evidence_of(world)
    raw = evidence.quote.quote
    at = data.draw(st.integers(0, len(raw) - 1))
    damaged = data.draw(
        st.sampled_from(
            [raw[:at], raw[:at] + b"\xff" * 9 + raw[at + 9 :], raw[:at] + raw[at + 1 :], raw[at:], raw + raw]
        )
    )
    report = judge(change(evidence, quote=change(evidence.quote, quote=damaged)), world.policy())
    if world.technology in ("snp", "nitro") and damaged != raw:
        assert failed(report)
    else:
        assert [step.name for step in report.steps] == list(STEPS)


_MADE: dict[int, Evidence] = {}


def _evidence_of(world: World) -> Evidence:
    """One a world: making it anew for every example would be the slowest part."""
    return _MADE.setdefault(id(world), make_evidence(world))
