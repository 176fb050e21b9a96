"""Methods of the pretrain stage: one method a module."""
