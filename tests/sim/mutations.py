"""Planted bugs: each a substitution in one module of the product, applied when that is imported, and nowhere else.

`install` puts a finder before Python's own, in a process made for it; the tree is never touched. A text that does not
occur exactly once is an error, so no mutation can silently stop being one.
"""

import importlib.abc
import importlib.machinery
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType

from quorate_simulation.profiles import DEFAULT_PROFILE


@dataclass(frozen=True)
class Mutation:
    """`is_quick`: one of the first seeds finds it, so that every test run looks. `seeds_max`: how many are tried.

    `known_seed` found it when it was last looked for, and every test run begins there: what a change of the product
    makes of that seed costs no more than the seeds behind it. The campaign begins at seeds that nobody has chosen.
    """

    name: str
    module: str
    text: str
    replacement: str
    profile: str = DEFAULT_PROFILE
    is_quick: bool = True
    seeds_max: int = 60
    known_seed: int = 1


class _Loader(importlib.machinery.SourceFileLoader):
    def __init__(self, mutation: Mutation, path: str) -> None:
        super().__init__(mutation.module, path)
        self._mutation = mutation

    def path_stats(self, path: str) -> dict[str, float]:
        """Neither read nor written from the cache."""
        raise OSError(f"{path} is mutated")

    def get_data(self, path: str) -> bytes:
        text = super().get_data(path).decode()
        if text.count(self._mutation.text) != 1:
            raise LookupError(f"{self._mutation.name}: {text.count(self._mutation.text)} times in {path}")
        return text.replace(self._mutation.text, self._mutation.replacement).encode()


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, mutation: Mutation) -> None:
        self._mutation = mutation

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != self._mutation.module:
            return None
        spec = importlib.machinery.PathFinder.find_spec(fullname, path, target)
        if spec is None or spec.origin is None:
            return None
        spec.loader = _Loader(self._mutation, spec.origin)
        return spec


def install(mutation: Mutation) -> None:
    """Before anything of the product is imported."""
    if mutation.module in sys.modules:
        raise LookupError(f"{mutation.module} is imported already")
    sys.meta_path.insert(0, _Finder(mutation))


MUTATIONS = (
    Mutation(
        "skip the fsync", "quorate_raft.runtime.wal",
        "            file.append(record)\n            file.sync()\n",
        "            file.append(record)\n",
    ),
    Mutation(
        "believe a log that was never synced", "quorate_raft.runtime.wal",
        "        self._file.sync()\n        self._disk.sync_folder()\n",
        "",
    ),
    Mutation(
        "count entries of old terms for commit", "quorate_raft.core.replication",
        "if index > log.commit_index and log.term_at(index) == member.term:",
        "if index > log.commit_index:",
        profile="reigns", known_seed=3,
    ),
    Mutation(
        "forget the vote at a restart", "quorate_raft.core.state",
        "self.vote = hard_state.vote if self.term == hard_state.term else NO_MEMBER",
        "self.vote = NO_MEMBER",
        profile="reigns", known_seed=10,
    ),
    Mutation(
        "serve a read without a quorum", "quorate_raft.core.replication",
        "        if not (member.has_committed_in_term and member.reads.ask(asker, context)):\n"
        "            member.answer_read(asker, context, 0)\n",
        "        member.answer_read(asker, context, member.log.commit_index if member.has_committed_in_term else 0)\n",
        profile="network", known_seed=10,
    ),
    Mutation(
        "serve reads before anything is committed in the term", "quorate_raft.core.replication",
        "if not (member.has_committed_in_term and member.reads.ask(asker, context)):",
        "if not member.reads.ask(asker, context):",
        is_quick=False,
    ),
    Mutation(
        "apply before durable", "quorate_raft.core.log",
        "end_index = min(self.commit_index, self.stable_index, self.applying_index + entries_max)",
        "end_index = min(self.commit_index, self.applying_index + entries_max)",
    ),
    Mutation(
        "acknowledge entries before they are durable", "quorate_raft.core.replication",
        "            answer = AppendResponse(member.name, request.sender, member.term, agreed_index)\n",
        "            member.messages.append(AppendResponse(member.name, request.sender, member.term, agreed_index))\n"
        "            return\n",
    ),
    Mutation(
        "count the leader's own entries before they are durable", "quorate_raft.core.replication",
        "matches.append(log.stable_index)",
        "matches.append(log.last_index)",
    ),
    Mutation(
        "vote without checking the log", "quorate_raft.core.election",
        "granted = may_vote and not member.knows_nothing and "
        "member.log.is_up_to_date(request.last_index, request.last_term)",
        "granted = may_vote and not member.knows_nothing",
        known_seed=3,
    ),
    Mutation(
        "vote twice in a term", "quorate_raft.core.election",
        "or (member.vote == NO_MEMBER and member.leader == NO_MEMBER)",
        "or member.leader == NO_MEMBER",
        known_seed=7,
    ),
    Mutation(
        "accept entries without the previous term's check", "quorate_raft.core.log",
        "        if self.term_at(previous_index) != previous_term:\n            return None\n        if entries:",
        "        if self.term_at(previous_index) is None:\n            return None\n        if entries:",
        profile="elections",
    ),
    Mutation(
        "cut the log at every append", "quorate_raft.core.log",
        "known = self._count_agreeing(entries)",
        "known = 0",
        known_seed=30,
    ),
    Mutation(
        "skip CheckQuorum", "quorate_raft.core.election",
        "        if not _is_heard_by_majority(member):\n",
        "        if _is_heard_by_majority(member) is None:\n",
        profile="network",
    ),
    Mutation(
        "reuse a read context", "quorate_raft.runtime.barriers",
        "        context = self._next_context\n        self._next_context += 1\n",
        "        context = self._next_context\n",
        profile="network", known_seed=50,
    ),
    Mutation(
        "reuse a read round", "quorate_raft.core.reads",
        "        self.newest_round += 1\n        self._open.append(",
        "        self.newest_round = max(1, self.newest_round)\n        self._open.append(",
        profile="network",
    ),
    Mutation(
        "change the membership twice at once", "quorate_raft.core.reconfiguration",
        "    if log.configurations.unsettled_index:\n",
        "    if log.configurations.unsettled_index < 0:\n",
        profile="membership", known_seed=11,
    ),
    Mutation(
        "change the membership before anything is committed in the term", "quorate_raft.core.reconfiguration",
        "    if not member.has_committed_in_term:\n",
        "    if member.has_committed_in_term is None:\n",
        profile="membership",
    ),
    Mutation(
        "cut the log past its snapshot", "quorate_raft.runtime.wal",
        "        first_sequence = next(kept, end.sequence + 1)\n",
        "        first_sequence = end.sequence + 1\n",
        known_seed=5,
    ),
    Mutation(
        "the applied index in a transaction of its own", "quorate_store.state",
        "                results = [self._apply_entry(txn, entry) for entry in entries]\n"
        "                self._database.save_meta(txn, self._meta)\n",
        "                results = [self._apply_entry(txn, entry) for entry in entries]\n"
        '            with self._database.failing("write"), self._database.write() as txn:\n'
        "                self._database.save_meta(txn, self._meta)\n",
        profile="crashes", is_quick=False, seeds_max=600,
    ),
    Mutation(
        "take an unknown outcome for a failure", "quorate_raft.runtime.forwarding",
        "            if error.kind.retry is Retry.UNKNOWN or isinstance(error, DeadlineExceeded):\n"
        "                return\n"
        "            for proposal in batch:\n"
        "                proposal.settle(type(error)(error.detail, **error.extensions))",
        "            for proposal in batch:\n                proposal.settle(NotProposed(error.detail))",
        known_seed=3,
    ),
    Mutation(
        "take a jump of the clock for time that has passed", "quorate_store.lease_keeper",
        "if stalled_s > STALL_S_MIN and self._lessor is not None",
        "if stalled_s < -TICK_INTERVAL_S and self._lessor is not None",
        profile="clocks", known_seed=3,
    ),
    Mutation(
        "renew a lease and leave its checkpoint", "quorate_store.lease_keeper",
        "        await self._clear_checkpoints(lessor, term, leases)\n",
        "",
        profile="network", is_quick=False, seeds_max=200,
    ),
    Mutation(
        "keep entries that a snapshot has replaced", "quorate_raft.runtime.wal",
        "or extent.term_at(base.index) == base.term",
        "or extent.term_at(base.index) is not None",
        profile="reigns", is_quick=False, seeds_max=600,
    ),
    Mutation(
        "lose events when a watch catches up", "quorate_store.watches",
        "            self._next_revision = reached + 1\n        if self._next_revision > present:",
        "            self._next_revision = reached + 2\n        if self._next_revision > present:",
        known_seed=2,
    ),
    Mutation(
        "forget events when a watch falls behind", "quorate_store.watches",
        "        self._become_behind(first.events[0].kv.mod_revision)\n",
        "        self._become_behind(first.events[0].kv.mod_revision + 1)\n",
        known_seed=4,
    ),
    Mutation(
        "repeat events when a watch falls behind", "quorate_store.watches",
        "        self._become_behind(first.events[0].kv.mod_revision)\n",
        "        self._become_behind(first.events[0].kv.mod_revision - 1)\n",
        known_seed=2,
    ),
    Mutation(
        "hand out a bookmark of what is still in history", "quorate_store.watches",
        "        if self._group is None or self._feed.is_behind:\n            self._is_progress_wanted = True\n",
        "        if self._group is None and self._feed.is_behind:\n            self._is_progress_wanted = True\n",
        known_seed=7,
    ),
    Mutation(
        "tell what was there before without its value", "quorate_store.mvcc",
        "            if earlier != NOWHERE and not is_deletion(earlier):\n"
        "                before = self.key_value(txn, earlier)\n",
        "            if earlier != NOWHERE and not is_deletion(earlier):\n"
        "                before = self.key_value(txn, earlier, keys_only=True)\n",
        known_seed=4,
    ),
    Mutation(
        "tell that a deleted key was there before", "quorate_store.mvcc",
        "            if earlier != NOWHERE and not is_deletion(earlier):\n",
        "            if earlier != NOWHERE:\n",
    ),
    Mutation(
        "call history compacted that is there", "quorate_store.mvcc",
        "        if start < self.meta.compact_revision:\n",
        "        if start <= self.meta.compact_revision + 1:\n",
    ),
    Mutation(
        "leave a key when its lease ends", "quorate_store.state",
        "        for key in self.leases.keys(lease):\n",
        "        for key in list(self.leases.keys(lease))[1:]:\n",
    ),
    Mutation(
        "do not look at the request id", "quorate_store.request_guard",
        "Compare(self.key, CompareTarget.VERSION, CompareResult.EQUAL, 0)",
        "Compare(self.key, CompareTarget.VERSION, CompareResult.NOT_EQUAL, 1_000_000)",
        known_seed=3,
    ),
    Mutation(
        "put the marker of a request in a transaction of its own", "quorate_store.once",
        "            result = await self._store.txn(guarded.compare, guarded.success, guarded.failure)\n",
        "            written, marked = guarded.success[:1], guarded.success[1:]\n"
        "            result = await self._store.txn(guarded.compare, written, guarded.failure)\n"
        "            if result.succeeded and marked:\n"
        "                await self._store.txn((), marked)\n",
    ),
    Mutation(
        "look at one comparison of a transaction only", "quorate_store.transactions",
        "    succeeded = all(holds(compare, look_up) for compare in txn.compare)\n",
        "    succeeded = all(holds(compare, look_up) for compare in txn.compare[:1])\n",
    ),
)  # fmt: skip
