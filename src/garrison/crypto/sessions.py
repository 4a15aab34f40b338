"""Keys of a session between a client and an enclave: one for each direction, and from each a key of its own for every message.

    secret  = the client's 32 bytes | the enclave's 32 bytes
    key     = HKDF-SHA256(secret, info = label | direction | binding)      one for requests, one for answers
    message = HMAC-SHA256(key, header)                                     AES-256-GCM, used once

The header of a message holds 16 random bytes beside its counter. So no two messages are ever encrypted under one key and nonce, not even
where a client is copied with its counters (a fork, a virtual machine that is set back): what AES-GCM does not forgive cannot happen.

Not covered: whoever holds a session's keys reads all of that session; there is no ratchet within it, its bounds are the table's.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.hmac import HMAC
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from garrison.errors import SealedRequestError

SECRET_BYTES = 32
"""What each side adds to a session's keys."""
MESSAGE_OVERHEAD_BYTES = 16
"""How much longer a message gets: the tag."""

_LABEL = b"garrison session v1\0"
_REQUESTS, _ANSWERS = b"requests\0", b"answers\0"
_KEY_BYTES = 32
_ONCE = bytes(12)


@dataclass(frozen=True, slots=True, repr=False)
class SessionKeys:
    """The two keys of a session.

    Attributes:
        requests, answers: by direction; 32 bytes each.
    """

    requests: bytes
    answers: bytes
    # Each ready for a header: a message key is made of a copy, in a third of the time that it takes to begin with the key.
    _of_request: HMAC = field(init=False, compare=False)
    _of_answer: HMAC = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_of_request", HMAC(self.requests, SHA256()))
        object.__setattr__(self, "_of_answer", HMAC(self.answers, SHA256()))

    @classmethod
    def derive(cls, client_secret: bytes, enclave_secret: bytes, binding: bytes) -> SessionKeys:
        """The keys that both sides come to.

        Args:
            client_secret, enclave_secret: `SECRET_BYTES` random bytes each.
            binding: names all that the session is bound to; another one, and the keys are others.

        Raises:
            SealedRequestError: a secret of another length.
        """
        if not len(client_secret) == len(enclave_secret) == SECRET_BYTES:
            raise SealedRequestError(f"expected two secrets of {SECRET_BYTES} bytes for a session")
        secret = client_secret + enclave_secret
        return cls(*(_expand(secret, direction + binding) for direction in (_REQUESTS, _ANSWERS)))

    def request_key(self, header: bytes) -> bytes:
        """Encrypts the request with that header, and nothing else."""
        mac = self._of_request.copy()
        mac.update(header)
        return mac.finalize()

    def answer_key(self, header: bytes) -> bytes:
        """Encrypts the answer to the request with that header, and nothing else."""
        mac = self._of_answer.copy()
        mac.update(header)
        return mac.finalize()


def seal_message(key: bytes, plaintext: bytes, header: bytes) -> bytes:
    """AES-256-GCM; `header` is authenticated too. The key must be used for this one message alone."""
    return AESGCM(key).encrypt(_ONCE, plaintext, header)


def open_message(key: bytes, sealed: bytes | memoryview, header: bytes) -> bytes:
    """The plaintext of `seal_message`.

    Raises:
        SealedRequestError: another key or header, or it was changed.
    """
    try:
        return AESGCM(key).decrypt(_ONCE, sealed, header)
    except (InvalidTag, ValueError) as error:
        raise SealedRequestError("the sealed request does not open: it was changed, or sealed otherwise") from error


def _expand(secret: bytes, info: bytes) -> bytes:
    return HKDF(algorithm=SHA256(), length=_KEY_BYTES, salt=None, info=_LABEL + info).derive(secret)
