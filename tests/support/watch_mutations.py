"""Bugs to be planted in what serves watches, each of which some watcher must notice."""

from sim.mutations import Mutation

WATCH_MUTATIONS = (
    Mutation(
        "lose an event when a watch catches up", "quorate_store.watches",
        "            self._next_revision = reached + 1\n        if self._next_revision > present:",
        "            self._next_revision = reached + 2\n        if self._next_revision > present:",
    ),
    Mutation(
        "repeat events when a watch falls behind", "quorate_store.watches",
        "        self._become_behind(first.events[0].kv.mod_revision)\n",
        "        self._become_behind(first.events[0].kv.mod_revision - 1)\n",
    ),
    Mutation(
        "lose one event of a hundred on its way to the client", "quorate_store.v3.watch",
        "        if not wanted.events:\n            return\n",
        "        if not wanted.events or batch.revision % 100 == 0:\n            return\n",
    ),
    Mutation(
        "promise progress before it is made", "quorate_store.v3.watch",
        "        header = await (self._headers.at(revision) if revision else self._headers.newest())\n"
        "        await self._send(encode_reply(header, STREAM_WATCH_ID))\n",
        "        header = await (self._headers.at(revision + 3) if revision else self._headers.newest())\n"
        "        await self._send(encode_reply(header, STREAM_WATCH_ID))\n",
    ),
)  # fmt: skip
