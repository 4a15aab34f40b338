from __future__ import annotations

import re
from pathlib import Path

import msgspec
import pytest

from garrison.attest.policy import HARDWARE, Policy, SnpTcb, load_policy
from garrison.errors import ConfigError

FULL = """
allow_debug = false
technologies = ["snp", "tdx"]
model = "digits"
least_version = 3
manifests = ["{digest}"]
guards = ["{digest}"]
max_age = 60
owners = ["{digest}"]
most_key_seconds = 600

[measurements]
snp = ["{long}"]
tdx = ["{long}:{long}"]

[roots]
snp = ["{digest}"]

[snp]
least_tcb = {{ bootloader = 4, tee = 0, snp = 22, microcode = 213 }}
most_vmpl = 1

[dcap]
statuses = ["UpToDate", "SWHardeningNeeded"]
""".format(digest="ab" * 32, long="cd" * 48)


def load(folder: Path, text: str) -> Policy:
    file = folder / "policy.toml"
    file.write_text(text)
    return load_policy(file)


def test_the_default_refuses_what_nobody_allowed() -> None:
    policy = Policy()
    assert not policy.allow_simulated
    assert not policy.allow_debug
    assert not policy.measurements
    assert not policy.owners
    assert policy.snp.least_tcb is None
    assert policy.dcap.statuses == ("UpToDate",)
    assert [policy.accepts(technology) for technology in HARDWARE] == [True] * 4
    assert not policy.accepts("sim")


def test_a_file_gives_every_setting(tmp_path: Path) -> None:
    policy = load(tmp_path, FULL)
    assert policy.snp.least_tcb == SnpTcb(bootloader=4, tee=0, snp=22, microcode=213)
    assert policy.technologies == ("snp", "tdx")
    assert policy.measurements["tdx"] == ("cd" * 48 + ":" + "cd" * 48,)
    assert (policy.least_version, policy.max_age, policy.snp.most_vmpl) == (3, 60, 1)
    assert (policy.owners, policy.most_key_seconds) == (("ab" * 32,), 600)
    assert load(tmp_path, "") == Policy()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("allow_simulate = true", "allow_simulate"),
        ("[snp]\nleast = 1", "least"),
        ("[snp.least_tcb]\nbootloader = 1\ntee = 0\nsnp = 1\nmicrocode = 1\nucode = 1", "ucode"),
        ("[snp.least_tcb]\nbootloader = 1", "tee"),
        ("[snp.least_tcb]\nbootloader = 256\ntee = 0\nsnp = 1\nmicrocode = 1", "255"),
        ("[measurements]\nsev = []", "sev"),
        ('[measurements]\nsnp = ["ABCD"]', "lower-case hex"),
        ('[measurements]\nsnp = [""]', "lower-case hex"),
        ('manifests = ["abcd"]', "SHA-256"),
        ('owners = ["abcd"]', "SHA-256"),
        ("most_key_seconds = 0", "positive"),
        ('[roots]\nsnp = ["abcd"]', "SHA-256"),
        ('technologies = ["intel"]', "intel"),
        ('allow_debug = "no"', "bool"),
        ("max_age = 0", "positive"),
        ("allow_debug =", "not TOML"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        load(tmp_path, text)


def test_the_file_in_the_documentation_can_be_read(tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "attestation.md").read_text()
    (text,) = re.findall(r"^```toml\n(.*?)^```", page, re.DOTALL | re.MULTILINE)
    policy = load(tmp_path, re.sub(r"<\d* ?\w+( \w+)?>", "ab" * 32, text))
    assert policy.least_version == 3
    assert policy.snp.least_tcb is not None


def test_a_missing_file_and_bytes_that_are_no_text(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        load_policy(tmp_path / "none.toml")
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="not TOML"):
        load_policy(tmp_path / "bytes.toml")


def test_a_policy_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        Policy().allow_debug = True  # type: ignore[misc]


def test_levels_are_compared_one_by_one() -> None:
    least = SnpTcb(bootloader=1, tee=1, snp=1, microcode=1)
    assert least.at_least(least)
    for name in ("bootloader", "tee", "snp", "microcode"):
        high = dict.fromkeys(("bootloader", "tee", "snp", "microcode"), 255)
        assert not SnpTcb(**(high | {name: 0})).at_least(least)
    assert not least.at_least(msgspec.structs.replace(least, fmc=1))
