"""Active checks: how instances that send no heartbeats are, asked at their own address by one node each."""
