"""What lets code written for devinterp run on this package: version 2.0.1 as it is, 1.3.2 by its function's name."""

from .learning_coeff import estimate_learning_coeff, estimate_learning_coeff_with_summary
from .patch import Patch, patch_devinterp

__all__ = ["Patch", "estimate_learning_coeff", "estimate_learning_coeff_with_summary", "patch_devinterp"]
