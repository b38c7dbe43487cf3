"""Figures and tables from what a sweep left on disk: cells.json, records and metrics. No Optuna, no torch."""
