"""The thread that looks at the repository: what it is told is never lost."""

from __future__ import annotations

import threading

from server_process import WAIT

from convserve.serving.polling import Poller


class Looks:
    """A repository that says how it was looked at."""

    def __init__(self):
        self.settled = []
        self.told = threading.Event()

    def refresh(self, settled, loaded_only):
        self.settled.append(settled)
        if not settled:
            self.told.set()


class Interrupted(Poller):
    """One whose thread loses its turn, for as long as it may take, while it reads what was said."""

    others = None

    @property
    def _told(self):
        told = self.said
        if self.others is not None and threading.current_thread() is self._thread:
            self.others, other = None, self.others
            other.start()
            other.join(0.5)
        return told

    @_told.setter
    def _told(self, told):
        self.said = told


def test_a_hangup_while_another_is_taken_is_not_lost():
    looks = Looks()
    poller = Interrupted(looks, None)
    poller.others = threading.Thread(target=poller.look_now)
    poller._wake.set()  # as one that comes at the end of the look before
    try:
        assert looks.told.wait(WAIT)
    finally:
        poller.close()
    assert looks.settled == [True, False]
