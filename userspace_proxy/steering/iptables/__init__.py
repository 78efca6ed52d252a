"""Steering by iptables: the text of its rules (pure), and who writes and watches them. Entry point: ``steering``."""
