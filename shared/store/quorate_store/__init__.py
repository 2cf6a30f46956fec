"""The replicated key-value store: etcd's semantics on Raft and LMDB."""
