"""Where the pure decisions of this member meet other people's libraries; nothing outside this package names them."""
