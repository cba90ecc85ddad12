"""A failure of work that is tried again and again: it is said when it begins, when it changes and when it is over.

Whoever reads the log of a mount on a full disk sees one line, and not one for each try. Belongs to the loop.
"""

import logging

log = logging.getLogger(__name__)


class Trouble:
    """What keeps one kind of work from being done, if anything does."""

    def __init__(self, work: str) -> None:
        self._work = work
        self._known: tuple[type[Exception], int | None] | None = None

    def met(self, error: Exception) -> None:
        """Say that the work failed and is tried again, unless it failed like that before."""
        kind = type(error), getattr(error, "errno", None)
        if kind != self._known:
            self._known = kind
            log.warning("%s cannot be done now and is tried again: %s", self._work, error)

    def over(self) -> None:
        """Say that the work is done again, where it had failed."""
        if self._known is not None:
            self._known = None
            log.info("%s goes on", self._work)
