"""Events between services that each own a database: sent at least once, in order, consumed exactly once.

A service writes its change and the event that tells of it in one local transaction (`Outbox`); a `Relay` sends what
is due over a `Bus`; the consumer takes an event and its own change in one transaction guarded by an `Inbox` row.
`Database` is the engine beneath. Migrations live in `quorate_messaging.migration`, which alone imports Alembic.
"""

from quorate_messaging.bus import Bus
from quorate_messaging.database import Database
from quorate_messaging.delivery import Outcome, RelayPolicy, Verdict
from quorate_messaging.event import Event
from quorate_messaging.housekeeping import Housekeeping
from quorate_messaging.ids import time_ordered_id
from quorate_messaging.inbox import Inbox, inbox_table
from quorate_messaging.outbox import Outbox, outbox_table
from quorate_messaging.relay import Relay

__all__ = [
    "Bus",
    "Database",
    "Event",
    "Housekeeping",
    "Inbox",
    "Outbox",
    "Outcome",
    "Relay",
    "RelayPolicy",
    "Verdict",
    "inbox_table",
    "outbox_table",
    "time_ordered_id",
]
