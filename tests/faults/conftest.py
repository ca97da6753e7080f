"""Makes the fixtures of `forking.py` known here."""

from forking import forks, forks_of, plain_forks, resumed_house, server, two_forks  # noqa: F401
