"""UDP entries of conntrack that have outlived the rules they were made by. Entry point: ``conntrack``."""
