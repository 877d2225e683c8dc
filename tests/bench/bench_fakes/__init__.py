"""Benches that cost next to nothing, addressed by dotted path like any bench kept outside of the package."""
