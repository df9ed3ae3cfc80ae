"""Events, the bus they ride on, and its subscribers."""
