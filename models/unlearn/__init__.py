"""Methods of the unlearn stage: one method a module."""
