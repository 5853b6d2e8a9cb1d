"""Stored runs read again: the estimate as it was reported, and as it should have been."""

from .found import Audit
from .reading import audit

__all__ = ["Audit", "audit"]
