"""The self-driving demonstration: three Backends, one Service, a live table. Composes ``control``."""
