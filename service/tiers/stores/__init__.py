"""One store for each kind of tier. Its calls block, so it runs in an I/O worker."""
