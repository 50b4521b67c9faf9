"""Calls that run before their results are needed."""

import collections
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def ahead(pool: ThreadPoolExecutor, calls: Iterable[tuple], count: int) -> Iterator[Any]:
    """Yield the results of calls (tuples of function and arguments) in order, while the next `count` already run."""
    pending = collections.deque()
    for call in calls:
        pending.append(pool.submit(*call))
        if len(pending) > count:
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
