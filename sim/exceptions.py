"""Errors of the simulator, and the operator's next move.

SimError
`- ServiceError   the ranking service did not answer as it should: is it up, and does its config match the world's?
   `- UnreachableError   nothing answers at the address
"""


class SimError(Exception):
    """Root of all errors of this package."""


class ServiceError(SimError):
    """The ranking service answered with an error or with something that is not an answer."""


class UnreachableError(ServiceError):
    """The ranking service could not be reached, or not in time."""
