"""Images as the bytes of a file."""

import io


def encode(image, kind="PNG", **options) -> bytes:
    """Return a PIL image as `Image.save` writes it."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()
