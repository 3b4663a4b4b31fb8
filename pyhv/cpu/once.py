# SPDX-License-Identifier: GPL-2.0-only
"""Facts of the process: what is found out about library and host once, and never changes.

Machines do not know of each other, and may live in threads of their own. What they share is only what
belongs to the process by nature: the one library that is loaded, its pointers that have been led to our code,
what has been proved of it. Each such fact is a function without arguments under `once`; whoever asks first
finds it out, while the others wait: some of them change the library, and must not be found out twice.
"""

import functools
import threading
from collections.abc import Callable
from typing import Final, Protocol, TypeVar

_T_co = TypeVar("_T_co", covariant=True)
lock: Final = threading.RLock()
"""One for all, as facts rest upon others; also for the few lists that belong to them."""


class Fact(Protocol[_T_co]):
    """What `once` makes of a function."""

    def __call__(self) -> _T_co:
        """The fact."""

    def cache_clear(self) -> None:
        """Find it out anew, for tests."""


class _Once(Fact[_T_co]):
    def __init__(self, find: Callable[[], _T_co]) -> None:
        self._found = functools.cache(find)
        functools.update_wrapper(self, find)

    def __call__(self) -> _T_co:
        with lock:
            return self._found()

    def cache_clear(self) -> None:
        self._found.cache_clear()


def once(find: Callable[[], _T_co]) -> Fact[_T_co]:
    """Decorator of a function that is called once, by one thread, however many ask.

    An exception is no fact: the next one who asks tries again.
    """
    return _Once(find)
