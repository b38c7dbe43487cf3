"""Many runs: the sweep file, its cells and search space, the queue that Optuna keeps, the plan."""
