"""What reading data may raise. Each message names the place (file, member, column) and says what to do."""


class SourceError(ValueError):
    """A data set that cannot be opened or used."""


class SegmentationError(SourceError):
    """Labelled data that cannot be used."""


class UnreadableImage(Exception):
    """One image that cannot be read or decoded.

    Attributes:
      name: a path or the like.
      reason: why, as text.
    """

    def __init__(self, name: str, reason: str):
        super().__init__(name, reason)  # both, so that it can cross process borders
        self.name = name
        self.reason = reason

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"
