"""Image sets: one table and one reader for public downloads, the user's own folders,
and phantoms."""

from nbhelpers.core.imageset import ImageSet

__all__ = ["ImageSet"]
