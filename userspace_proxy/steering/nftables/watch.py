"""Whether others have changed any rule of nf_tables, told from what we change ourselves. Entry point: ``Watch``."""

from userspace_proxy.steering.ruleset_state import read_generation


class Watch:
    """Counts the changes by others, at the price of one system call; one for all our tables, who share a generation."""

    def __init__(self) -> None:
        self._generation: int | None = None
        """That of the ruleset when it was last looked at, with our own changes since then."""
        self._changes = 0

    def changes(self) -> int:
        """Return how often others were found to have changed something: never less, equal if they have not since."""
        try:
            generation = read_generation()
        except OSError:  # it cannot be told, so everything counts as changed
            generation = None
        if generation is None or generation != self._generation:
            self._generation = generation
            self._changes += 1
        return self._changes

    def add_own(self, transactions: int) -> None:
        """Expect our own transactions; ``changes`` was called just before the first of them."""
        if self._generation is not None:
            self._generation += transactions
