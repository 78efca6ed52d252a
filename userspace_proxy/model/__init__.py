"""What Kubernetes says, as values: Services, EndpointSlices, and the Problems found in them. Pure."""
