"""The test kit: property tests for mappings and merges, histories, stand-ins for clocks and transports."""

from importlib.util import find_spec

from cloudstore_mapping.errors import UnsupportedError

if find_spec("hypothesis") is None:
    raise UnsupportedError("The test kit needs hypothesis; pip install 'cloudstore-mapping[testing]'.")

from cloudstore_mapping.testing import faults, strategies
from cloudstore_mapping.testing.clocks import FrozenClock
from cloudstore_mapping.testing.concurrency import assert_linearizable
from cloudstore_mapping.testing.exact import same
from cloudstore_mapping.testing.faults import FaultyTransport
from cloudstore_mapping.testing.laws import assert_merge_laws, find_counterexample
from cloudstore_mapping.testing.linearizability import (
    ABSENT,
    Call,
    History,
    NotLinearizableError,
    UndecidedError,
    check_linearizable,
    register_step,
)
from cloudstore_mapping.testing.machine import mapping_machine
from cloudstore_mapping.testing.transports import CountingTransport, SlowTransport

__all__ = [
    "ABSENT",
    "Call",
    "CountingTransport",
    "FaultyTransport",
    "FrozenClock",
    "History",
    "NotLinearizableError",
    "SlowTransport",
    "UndecidedError",
    "assert_linearizable",
    "assert_merge_laws",
    "check_linearizable",
    "faults",
    "find_counterexample",
    "mapping_machine",
    "register_step",
    "same",
    "strategies",
]
