"""Which shards are given to whom, where those that compute may be slow, or end at any moment."""

from collections import Counter, deque
from collections.abc import Hashable, Iterable

MOST_AT_A_TIME = 8
"""Shards. Between two hand-outs the decoding processes of a net are started again."""


class Handout:
    """Keeps the books of which shards are given to whom, where several compute that may be slow, or end at any moment.

    Whoever is free is given some shards at a time, fewer towards the end. When all are given, who is free is given the
    last one of another as well: the first to keep it wins, and nobody waits for the slowest.
    """

    def __init__(self, shards: Iterable[int]) -> None:
        self.waiting = deque(shards)
        """Given to nobody."""
        self._given: dict[Hashable, deque[int]] = {}
        self._holders: Counter[int] = Counter()

    @property
    def done(self) -> bool:
        """Whether every shard is settled."""
        return not self.waiting and not self._holders

    def take(self, taker: Hashable, takers: int) -> list[int]:
        """Give shards to one of so many that compute; none if all that is left is computed by two already."""
        count = max(1, min(MOST_AT_A_TIME, len(self.waiting) // (2 * takers)))
        chosen = [self.waiting.popleft() for _ in range(min(count, len(self.waiting)))] or self._second()
        if chosen:
            self._given[taker] = deque(chosen)
            self._holders.update(chosen)
        return chosen

    def settle(self, shard: int) -> bool:
        """Note that a shard is kept; False if that was known."""
        if self._holders.pop(shard, None) is None:
            return False
        for given in self._given.values():
            if shard in given:
                given.remove(shard)
        return True

    def finish(self, taker: Hashable) -> None:
        """Note that one has come to its end: what it has not spoken of, another has kept, who will say so."""
        for shard in self._given.pop(taker, ()):
            self._let_go(shard)

    def lose(self, taker: Hashable) -> int | None:
        """Note that one has ended before its time, and return the shard that it was at."""
        left = self._given.pop(taker, deque())
        self.waiting.extendleft(shard for shard in reversed(left) if self._let_go(shard))
        return left[0] if left else None

    def _let_go(self, shard: int) -> bool:
        """Count a holder less, and say whether that was the last."""
        self._holders[shard] -= 1
        if self._holders[shard]:
            return False
        del self._holders[shard]
        return True

    def _second(self) -> list[int]:
        """Choose a shard that one holds alone: the last of whoever has most to do."""
        for given in sorted(self._given.values(), key=len, reverse=True):
            for shard in reversed(given):
                if self._holders[shard] == 1:
                    return [shard]
        return []
