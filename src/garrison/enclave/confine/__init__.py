"""The steps by which a process gives up what it does not need. One file each; each says what it achieved, after looking."""
