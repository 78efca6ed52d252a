"""The control process: watches, plans, opens, steers, serves metrics. A trio program that composes the rest."""
