"""Component names -> the boxes of the parameters that they mean."""

from .families import Family, register_family
from .listing import components, expand
from .names import canonical_name, named_parameters, parameter_table
from .resolve import Component, create_param_masks, select

__all__ = [
    "Component",
    "Family",
    "canonical_name",
    "components",
    "create_param_masks",
    "expand",
    "named_parameters",
    "parameter_table",
    "register_family",
    "select",
]
