"""The engine that moves bytes: sockets, epoll, listeners, relays. Knows no trio and no Kubernetes source."""
