"""Sizes of files in texts."""


def size_text(n_bytes: int) -> str:
    """Such as `1 GiB`; the plain number where no unit fits."""
    for unit, scale in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if n_bytes % scale == 0:
            return f"{n_bytes // scale} {unit}"
    return f"{n_bytes} bytes"
