"""A size that follows from others."""

__all__ = ["even_split"]


def even_split(width: int, num_heads: int) -> int:
    """The width of a head where heads share the residual stream's features.

    Args:
      width: The features of the residual stream.
      num_heads: The number of query heads.

    Raises:
      ValueError: If they do not come out even.
    """
    if num_heads < 1 or width % num_heads:
        raise ValueError(
            f"`width` must be a multiple of `num_heads`, got {width} and {num_heads}."
        )
    return width // num_heads
