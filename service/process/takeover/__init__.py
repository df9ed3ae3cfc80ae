"""A running depot hands its memory to the process that replaces it, over a unix socket."""
