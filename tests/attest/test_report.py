from __future__ import annotations

import msgspec
import pytest

from garrison.attest.report import Report, Step
from garrison.attest.steps import STEPS, Checks, Stop
from garrison.errors import AttestationError


def report(checks: Checks, *required: str) -> Report:
    return Report(technology="snp", steps=checks.steps(), required=required)


def test_a_step_that_must_pass_and_was_skipped_is_not_good_enough() -> None:
    checks = Checks()
    checks.note("format", True, "a", "b")
    checks.skip("debug", "no such thing")
    assert report(checks, "format").passed
    assert not report(checks, "format", "debug").passed
    assert not report(checks, "format", "signature").passed, "never asked"
    with pytest.raises(AttestationError, match="must pass was skipped"):
        report(checks, "debug").require()


def test_a_demand_alone_never_makes_a_step_pass() -> None:
    checks = Checks()
    checks.demand("signature", True, "a", "b")
    assert not report(checks, "signature").passed


def test_a_failure_counts_whatever_comes_before_or_after() -> None:
    checks = Checks()
    checks.note("keys", True, "first", "")
    checks.note("keys", False, "second", "found")
    checks.note("keys", True, "third", "")
    checks.note("keys", False, "fourth", "")
    (step,) = report(checks).failures
    assert step == Step(name="keys", status="failed", expected="second", found="found")
    checks.skip("keys", "never mind")
    assert not report(checks).passed
    with pytest.raises(Stop):
        checks.stop("format", "a", "b")


def test_every_step_comes_out_once_and_in_order() -> None:
    checks = Checks()
    checks.note("guard", True, "", "")
    checks.note("format", True, "", "")
    assert [step.name for step in checks.steps()] == list(STEPS)
    with pytest.raises(ValueError, match="unknown step"):
        checks.note("formt", True, "", "")


def test_a_report_goes_through_json() -> None:
    checks = Checks()
    checks.note("format", False, "this", "that")
    found = report(checks, "format")
    assert msgspec.json.decode(msgspec.json.encode(found), type=Report) == found
