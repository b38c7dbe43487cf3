"""Tasks, one a file, found by name: what a network is trained for and how it is measured (interface: `base.py`)."""
