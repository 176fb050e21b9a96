"""Evidence: one module a method, run by `clearwell reproduce NAME`."""
