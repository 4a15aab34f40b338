"""Opens what is to be attacked: a service by its URL, or a sealed bundle in this process, with what it is compared with."""

from __future__ import annotations

import contextlib
import ssl
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from garrison.audit.arms import Arms, choose_arms
from garrison.audit.grid import ArmPlan
from garrison.audit.targets import HttpTarget, ReleaseChoice, Target, guarded
from garrison.bundle.reader import VerifiedBundle, verify
from garrison.bundle.secret import read_secret, secret_path
from garrison.client import Client
from garrison.crypto.owner import OwnerPublicKey
from garrison.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """How a target is opened.

    Attributes:
        reference: the bundle that is served; its model without its guard is the comparison.
        baseline: a bundle of the plain model, trained without any defense.
        secret: misinformation key of the reference; None for the one beside it.
        release: release this instead; only where the target is a bundle.
        api_key, insecure_plaintext, caller, tls, verify, model: for a service, see `garrison.client.Client`.
        accounts: further API keys, for attacks that ask from many accounts.
        arms: of the plan's table.
    """

    reference: Path | None = None
    baseline: Path | None = None
    secret: Path | None = None
    release: ReleaseChoice | None = None
    api_key: str | None = None
    insecure_plaintext: bool = False
    caller: str = ""
    tls: ssl.SSLContext | None = None
    verify: bool = True
    model: str | None = None
    accounts: tuple[str, ...] = ()
    arms: tuple[ArmPlan, ...] = ()


@contextlib.contextmanager
def open_arms(target: str, trusted: Sequence[OwnerPublicKey], opening: Opening) -> Iterator[Arms]:
    """The service and its comparisons; the connection is closed at the end.

    Args:
        target: a URL, or the folder of a sealed bundle.
        trusted: keys that may have signed the bundles.
        opening: the rest.

    Raises:
        ConfigError: neither of both, or a release policy for a running service.
        BundleError: a bundle must not be used.
    """
    is_url = target.startswith(("http://", "https://"))
    if is_url and opening.release is not None:
        raise ConfigError("--release changes a bundle's policy in this process; a running service keeps its own")
    baseline = _opened(opening.baseline, trusted)
    if is_url:
        reference = _opened(opening.reference, trusted)
        key = _key(opening.reference, opening.secret)
        with contextlib.ExitStack() as stack:
            names = ("model", "insecure_plaintext", "tls", "verify")
            options = {name: getattr(opening, name) for name in names}
            first = stack.enter_context(Client(target, api_key=opening.api_key, caller=opening.caller, **options))
            others = [stack.enter_context(Client(target, api_key=key, **options)) for key in opening.accounts]
            asked = HttpTarget(first, target, accounts=others)
            yield choose_arms(asked, reference=reference, baseline=baseline, key=key, plans=opening.arms)
        return
    path = Path(target)
    if not path.is_dir():
        raise ConfigError(f"expected a service's URL or the folder of a sealed bundle, found {target!r}")
    bundle, key = verify(path, trusted), _key(path, opening.secret)
    served: Target = guarded(bundle, key, opening.release)
    reference = _opened(opening.reference, trusted) or bundle
    yield choose_arms(served, reference=reference, baseline=baseline, key=key, plans=opening.arms)


def _opened(path: Path | None, trusted: Sequence[OwnerPublicKey]) -> VerifiedBundle | None:
    return None if path is None else verify(path, trusted)


def _key(bundle: Path | None, secret: Path | None) -> bytes | None:
    """The key that was named, else the one beside the bundle, else none."""
    if secret is not None:
        return read_secret(secret)
    beside = None if bundle is None else secret_path(bundle)
    return read_secret(beside) if beside is not None and beside.is_file() else None
