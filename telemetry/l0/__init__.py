"""The lives of blocks and chunks: how long they stay, how long unused, how soon they are wanted again."""
