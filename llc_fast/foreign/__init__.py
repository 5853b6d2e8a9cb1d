"""Evidence from trees that another sampler wrote: devinterp 2.x, or a run of ours that has not ended."""

from .evidence import Foreign, evidence_of, read
from .records import Records, Reported, read_records, reported

__all__ = ["Foreign", "Records", "Reported", "evidence_of", "read", "read_records", "reported"]
