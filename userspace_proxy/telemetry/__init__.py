"""Names of metrics and log keys, and how a log record becomes a line."""
