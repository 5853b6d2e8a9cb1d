"""Component names -> the boxes of the parameters that they mean."""

from .grammar import components, expand
from .names import canonical_name, named_parameters, parameter_table
from .resolve import Component, create_param_masks, select

__all__ = [
    "Component",
    "canonical_name",
    "components",
    "create_param_masks",
    "expand",
    "named_parameters",
    "parameter_table",
    "select",
]
