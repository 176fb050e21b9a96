"""Methods of the validate stage: one method a module."""
