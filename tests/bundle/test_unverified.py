from __future__ import annotations

import pytest
from tests.bundle.conftest import Sealed

from garrison.bundle.unverified import read_unverified
from garrison.errors import ManifestError, MissingFileError, SignatureFormatError
from garrison.limits import Limits


def test_what_a_bundle_claims_is_shown_even_when_it_lies(sealed: Sealed) -> None:
    found = read_unverified(sealed.path)
    assert found.manifest == sealed.manifest
    assert found.claimed_signer == sealed.owner.public.fingerprint
    file = sealed.path / "manifest.json"
    file.write_text(file.read_text().replace('"version": 1', '"version": 99'))
    assert read_unverified(sealed.path).manifest.version == 99


def test_what_is_no_bundle_is_told(sealed: Sealed) -> None:
    with pytest.raises(ManifestError, match="longer"):
        read_unverified(sealed.path, Limits(manifest_bytes=100))
    file = sealed.path / "manifest.json"
    text = file.read_text()
    file.write_text(text.replace('"version": 1', '"version": 1, "version": 99'))
    with pytest.raises(ManifestError, match="twice"):
        read_unverified(sealed.path)
    file.write_text(text)
    (sealed.path / "model.sig").write_text("{}")
    with pytest.raises(SignatureFormatError):
        read_unverified(sealed.path)
    (sealed.path / "model.sig").unlink()
    with pytest.raises(MissingFileError):
        read_unverified(sealed.path)
