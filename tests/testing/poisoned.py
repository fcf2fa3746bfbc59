"""Data with a NaN in them."""


class Poisoned:
    """A dataset whose examples are NaN in one batch of its feed, by its number; -1: in none."""

    def __init__(self, dataset, number: int) -> None:
        self._dataset, self._number = dataset, number

    def __getattr__(self, name):
        return getattr(self._dataset, name)

    def to(self, device):
        return self

    def feed(self, draws):
        for number, (inputs, labels) in enumerate(self._dataset.feed(draws)):
            yield (inputs * float("nan") if number == self._number else inputs), labels
