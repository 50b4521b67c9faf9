"""Comparison with the arrays recorded from the original; the worst deviation of each kind is printed after the tests."""

import numpy as np

# {kind: (worst deviation, its tolerance, where)}; `conftest.pytest_terminal_summary` prints it.
WORST: dict[str, tuple[float, float, str]] = {}
SAMPLES = 32


def sample(array: np.ndarray, count: int = SAMPLES) -> np.ndarray:
    """Return `count` values spread evenly over an array, repeated if it has fewer: `make_reference` keeps these of arrays
    that are too many to keep whole."""
    flat = np.ravel(array)
    return np.resize(flat[:: max(1, flat.size // count)], count)


def close(kind: str, ours, recorded, tolerance: float, where: str = "", scale: float | None = None) -> None:
    """Assert that no value differs by more than `tolerance` times `scale`: the largest recorded magnitude, if not given."""
    ours, recorded = np.asarray(ours), np.asarray(recorded)
    assert ours.shape == recorded.shape, f"{where}: {ours.shape}, recorded {recorded.shape}"
    deviation = float(np.abs(ours - recorded).max() / (np.abs(recorded).max() if scale is None else scale))
    if deviation > WORST.get(kind, (-1.0,))[0]:
        WORST[kind] = (deviation, tolerance, where)
    assert deviation <= tolerance, f"{kind}, {where}: deviation {deviation:.2e}"
