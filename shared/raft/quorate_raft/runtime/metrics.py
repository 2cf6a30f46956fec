"""What an operator sees of a member's consensus."""

from prometheus_client import Counter, Gauge, Histogram

TERM = Gauge("quorate_raft_term", "Current term", ["member"])
IS_LEADER = Gauge("quorate_raft_is_leader", "1 on the leader, else 0", ["member"])
COMMIT_INDEX = Gauge("quorate_raft_commit_index", "Last index known to be committed", ["member"])
APPLIED_INDEX = Gauge("quorate_raft_applied_index", "Last index applied to the state machine", ["member"])
ELECTIONS = Counter("quorate_raft_elections_total", "Elections this member stood in", ["member"])
LEADER_CHANGES = Counter("quorate_raft_leader_changes_total", "Times another leader was seen", ["member"])
PROPOSALS = Counter("quorate_raft_proposals_total", "Entries proposed through this member", ["member"])
PROPOSALS_WAITING = Gauge("quorate_raft_proposals_waiting", "Proposals whose outcome is awaited here", ["member"])
MESSAGES_REFUSED = Counter("quorate_raft_messages_refused_total", "Messages from peers that made no sense", ["member"])
MESSAGES_DROPPED = Counter(
    "quorate_raft_messages_dropped_total", "Messages not sent: link down, or its queue full", ["member", "peer"]
)
SYNC_SECONDS = Histogram(
    "quorate_raft_sync_seconds",
    "Time to make one batch durable, from the event loop and back",
    ["member"],
    buckets=(0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0),
)
BATCH_ENTRIES = Histogram(
    "quorate_raft_batch_entries", "Entries made durable by one sync", ["member"],
    buckets=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 4096),
)  # fmt: skip
SNAPSHOTS_TAKEN = Counter("quorate_raft_snapshots_taken_total", "Snapshots of its own state", ["member"])
SNAPSHOTS_SENT = Counter("quorate_raft_snapshots_sent_total", "Snapshots that a follower has taken over", ["member"])
SNAPSHOTS_RECEIVED = Counter("quorate_raft_snapshots_received_total", "Snapshots that came whole", ["member"])
FIRST_INDEX = Gauge("quorate_raft_first_index", "First entry that the log still holds", ["member"])
SNAPSHOT_INDEX = Gauge("quorate_raft_snapshot_index", "Last entry in the newest snapshot, 0 without one", ["member"])
