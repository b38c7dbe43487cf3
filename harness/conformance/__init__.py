"""What every method, model, data set and task must do: checks, for `python -m harness.conform` and the tests."""
