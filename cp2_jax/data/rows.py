"""Which rows of a global batch one process makes."""

from collections.abc import Sequence


def check_rows(rows: Sequence[int] | None, batch_size: int) -> tuple[int, ...]:
    """Return the rows of a batch that are made here.

    Args:
      rows: their numbers; None: all.
      batch_size: number of rows of the batch of all processes together.

    Raises:
      ValueError: if the batch is empty, or `rows` are not different numbers from 0 to `batch_size` - 1.
    """
    if batch_size <= 0:
        raise ValueError(f"batch_size {batch_size} must be positive")
    rows = tuple(range(batch_size) if rows is None else map(int, rows))
    if not rows or len(set(rows)) < len(rows) or min(rows) < 0 or max(rows) >= batch_size:
        raise ValueError(f"rows {rows} must be different numbers from 0 to {batch_size - 1}, at least one")
    return rows
