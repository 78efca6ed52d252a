"""The line between the control process and each worker: frames of bytes with file descriptors, and what they say."""
