"""Methods of the label_noise stage: one method a module."""
