"""Methods of the compress stage: one method a module."""
