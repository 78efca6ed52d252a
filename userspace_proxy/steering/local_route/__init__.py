"""Steering by local routes, without netfilter. Entry point: ``steering``."""
