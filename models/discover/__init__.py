"""Which rows belong together, how many groups there are, and which are classes nobody has named yet."""
