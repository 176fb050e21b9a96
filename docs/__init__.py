"""User documentation, and what writes its generated pages."""
