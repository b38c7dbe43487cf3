"""What is on disk: files, run and sweep directories, heartbeats, logs, archives, metric names."""
