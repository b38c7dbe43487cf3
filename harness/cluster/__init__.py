"""What carries runs out: workers, their slots and signals, Slurm."""
