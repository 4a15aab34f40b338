"""How many bytes of request bodies are held at once, over all requests and transports."""

from __future__ import annotations

from garrison.errors import UnavailableError


class HeldBytes:
    """Counts them. A caller may take as much again as is left of it: one alone half of the memory, two a third each.

    Args:
        most: bytes for all bodies together.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._all = 0
        self._by: dict[str, int] = {}

    @property
    def bytes(self) -> int:
        return self._all

    def take(self, caller: str, length: int, own: int = 0) -> None:
        """Count bytes of a body, of which `own` are counted already.

        Raises:
            UnavailableError: the memory for bodies is full, or the caller's other bodies take more than is left of it.
        """
        mine, free = self._by.get(caller, 0), self.most - self._all
        if length > free or mine - own > free:
            raise UnavailableError("the requests that are being answered fill the memory for them; try again")
        self._all += length
        self._by[caller] = mine + length

    def give_back(self, caller: str, length: int) -> None:
        self._all -= length
        left = self._by.get(caller, 0) - length
        if left > 0:
            self._by[caller] = left
        else:
            self._by.pop(caller, None)
