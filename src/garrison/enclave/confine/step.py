"""What one step of the confinement gave."""

from __future__ import annotations

import msgspec


class Step(msgspec.Struct, frozen=True):
    """The outcome of one step, as it was found by looking afterwards.

    Attributes:
        name: the capability, such as "seccomp".
        how: how it is had; "" where it is not.
        mend: where it is not had: why, and what would help.
    """

    name: str
    how: str
    mend: str = ""

    @property
    def achieved(self) -> bool:
        return bool(self.how)
