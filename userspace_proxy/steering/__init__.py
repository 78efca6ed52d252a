"""How packets for a Frontend reach a Listener: one module per kind, one interface in ``base``. Effects."""
