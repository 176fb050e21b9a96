"""Methods of the adapt stage: one method a module."""
