"""Where objects come from. Effects; the only place that may use threads and helper processes."""
