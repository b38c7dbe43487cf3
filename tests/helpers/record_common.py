"""What the tests in test_record_*.py share."""


class Crash(BaseException):
    """What no `except Exception` catches, as a signal would be."""
