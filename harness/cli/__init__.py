"""What commands share: finding a sweep, checks before a launch, progress, the status report."""
