"""A worker process: one engine, driven by what the control process says. Imports no trio and holds no privilege."""
