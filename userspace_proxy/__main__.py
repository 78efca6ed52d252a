"""Lets ``python -m userspace_proxy`` do what the ``userspace-proxy`` command does."""

from userspace_proxy.cli import main

if __name__ == "__main__":
    main()
