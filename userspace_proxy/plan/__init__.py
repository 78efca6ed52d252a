"""From what Kubernetes says to what this node should do: Frontends, Pools, and their differences. Pure."""
