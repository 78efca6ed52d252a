"""Steering by nftables: the text of its tables (pure), and who writes and watches them. Entry point: ``steering``."""
