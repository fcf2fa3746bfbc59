"""A set of trial ids that takes 16 bytes for each."""

from __future__ import annotations

from array import array


class IdSet:
    """Ids of 16 hexadecimal digits, as 64-bit numbers in a table with open addressing. They are hashes already; a set
    of a million strings would take over a hundred megabytes."""

    def __init__(self) -> None:
        self._table = array("Q", bytes(8 * 1024))
        self._count = 0

    def add(self, trial_id: str) -> bool:
        """Whether it was new."""
        if 2 * self._count >= len(self._table):
            old, self._table = self._table, array("Q", bytes(16 * len(self._table)))
            for number in old:
                if number:
                    self._put(number)
        new = self._put(int(trial_id, 16) or 1)  # 0 marks an empty place
        self._count += new
        return new

    def __len__(self) -> int:
        return self._count

    def _put(self, number: int) -> bool:
        table = self._table
        mask = len(table) - 1
        place = number & mask
        while found := table[place]:
            if found == number:
                return False
            place = (place + 1) & mask
        table[place] = number
        return True
